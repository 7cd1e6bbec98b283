"""Judges pictures and videos for programs and browsers, over HTTP."""
