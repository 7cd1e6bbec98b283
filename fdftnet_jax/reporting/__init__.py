"""Figures for people: plots, tables, and pages of HTML that stand alone."""
