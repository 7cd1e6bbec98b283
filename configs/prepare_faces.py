"""Cuts faces out of videos: every field, with its default and meaning.

    python -m experiments.prepare_faces --input=VIDEOS --output=CROPS

VIDEOS is a video or a folder of videos, at any depth; each becomes a folder of PNG
files at the same place in CROPS. With `real/` and `fake/` in VIDEOS, CROPS is a folder
that `--config=configs/pretrain.py:squeezenet,folder` trains on. The argument,
`configs/prepare_faces.py:mtcnn`, is the detector.
"""

import ml_collections


def get_config(detector: str = "cascade") -> ml_collections.ConfigDict:
    """Returns the fields of a preparation, with defaults."""
    config = ml_collections.ConfigDict()
    # What finds the faces: 'cascade' (OpenCV's; quick; faces that look at the camera)
    # or 'mtcnn' (turned and half-hidden faces too; needs pip install '.[faces]').
    config.detector = detector
    # Every n-th frame of a video is looked at.
    config.every = 10
    # At most so many of them a video, spread evenly over it; 0 for all.
    config.max_frames = 0
    # The 'largest' face of a frame, or 'all' of them. 'largest' leaves out a face of
    # less than half the median of the video: somebody in the background.
    config.faces = "largest"
    # Share of a face's side that is added on each side of it: the crop is a square of
    # 1 + 2 * margin times the longer side of the detector's box.
    config.margin = 0.2
    # Faces whose shorter side has fewer pixels are left out. (Those of less than half
    # of that, or of a twentieth of the frame's shorter side, are not looked for.)
    config.min_size = 64
    # Detections below it are left out; 0 takes the detector's own. cascade: the number
    # of windows that agree, 5. mtcnn: a probability, 0.95.
    config.min_confidence = 0.0
    # What a video shows, for the manifest: its 'stem', or a regex on its path whose
    # first group (or whole match) is the name.
    config.source_by = "stem"
    # Processes that read videos; 0 is one for each core. Each takes 0.2 GB of memory,
    # with mtcnn 1 GB.
    config.workers = 0
    return config
