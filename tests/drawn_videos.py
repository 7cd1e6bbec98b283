"""Small videos of drawn shapes and faces, and detectors that know them."""

import os
import signal
import struct

import av
import cv2
import numpy as np

from fdftnet_jax.faces.detection import Face

RED = (220, 20, 30)
BLUE = (20, 30, 220)
# Video codecs change colours and edges a little.
TOLERANCE = 5.9


class Stub:
    """Finds the red and the blue rectangle, red surer than blue."""

    name = "stub"
    min_confidence = 0.5

    @staticmethod
    def version():
        return "1"

    def __call__(self, image, smallest):
        values = image.astype(int)
        found = []
        for channel, confidence in ((0, 0.9), (2, 0.8)):
            others = values[..., 1], values[..., 2 - channel]
            rows, columns = np.nonzero(values[..., channel] - np.maximum(*others) > 90)
            if rows.size and max(np.ptp(rows), np.ptp(columns)) >= smallest:
                x, y = int(columns.min()), int(rows.min())
                size = int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1
                found.append(Face(x, y, *size, confidence))
        return found


class Murderous(Stub):
    """Takes its process down at a dark frame, as a bug of a C library would."""

    def __call__(self, image, smallest):
        if image.max() < 50:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().__call__(image, smallest)


class Waiting(Stub):
    """Never comes back from a dark frame; says that it has begun."""

    def __call__(self, image, smallest):
        if image.max() < 50:
            sleep()
        return super().__call__(image, smallest)


def sleep(*_):
    print(os.getpid(), flush=True)
    signal.pause()


def sleeper():
    return sleep


def canvas(height=120, width=160, colour=(120, 120, 120)):
    return np.full((height, width, 3), colour, np.uint8)


def rectangle(x, y, width, height, colour=RED, image=None):
    """A frame [height, width, 3] uint8 RGB with a rectangle of these sides."""
    image = canvas() if image is None else image
    image[y : y + height, x : x + width] = colour
    return image


def moving(number=12, side=40):
    """The frames of a red square that moves two pixels right each."""
    return [rectangle(10 + 2 * i, 20, side, side) for i in range(number)]


def face(x, y, side, image):
    """Draws a face whose brows to chin are about `side` pixels high."""

    def ellipse(cx, cy, a, b, colour):
        centre = round(x + cx * side / 100), round(y + cy * side / 100)
        axes = max(1, round(a * side / 100)), max(1, round(b * side / 100))
        cv2.ellipse(image, centre, axes, 0, 0, 360, colour, -1, cv2.LINE_AA)

    ellipse(50, 45, 52, 68, (60, 45, 40))
    ellipse(50, 52, 42, 56, (225, 185, 160))
    for eye in (30, 70):
        ellipse(eye, 35, 12, 3, (90, 60, 50))
        ellipse(eye, 42, 12, 7, (150, 110, 95))
        ellipse(eye, 43, 7, 4, (50, 35, 30))
    ellipse(50, 60, 5, 14, (240, 205, 180))
    ellipse(50, 70, 9, 3, (160, 110, 95))
    ellipse(50, 84, 17, 5, (150, 80, 80))
    return cv2.GaussianBlur(image, (0, 0), max(0.5, side / 50))


_CODECS = {".avi": "MJPG", ".mp4": "mp4v", ".mkv": "mp4v", ".mov": "mp4v"}


def write(path, frames, rate=10):
    """Writes frames [height, width, 3] uint8 RGB in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = cv2.VideoWriter_fourcc(*_CODECS[path.suffix])
    height, width, _ = frames[0].shape
    writer = cv2.VideoWriter(str(path), codec, rate, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def encode(path, frames, codec="libx264", *, rate=10, gop=10, b_frames=0, **options):
    """Writes frames by PyAV; options of the codec have '_' for '-'."""
    with av.open(path, "w") as file:
        named = {key.replace("_", "-"): str(value) for key, value in options.items()}
        stream = file.add_stream(codec, rate=rate, options=named)
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.max_b_frames = b_frames
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return path


def remux(path, source, keep=lambda i, packet: True, *, start=0, **how):
    """Copies the packets of a video that `keep` wants, without decoding."""
    with av.open(source) as old, av.open(path, "w", **how) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for i, packet in enumerate(old.demux(old.streams.video[0])):
            if packet.dts is not None and keep(i, packet):
                packet.pts, packet.dts = packet.pts - start, packet.dts - start
                packet.stream = stream
                new.mux(packet)
    return path


def packets(path):
    """Where the packets of a video lie in its file: (position, size) of each."""
    with av.open(path) as file:
        found = list(file.demux(file.streams.video[0]))
    return [(packet.pos, packet.size) for packet in found if packet.size]


def textured(number=40, height=48, width=64):
    """Frames of noise that moves, so that each is told from the others."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width + 4 * number, 3))
    noise = cv2.GaussianBlur(noise.astype(np.uint8), (0, 0), 2)
    return [noise[:, 4 * i : 4 * i + width] for i in range(number)]


def turn(path):
    """Makes an mp4 say that it is shown turned by 90 degrees, clockwise."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44  # ISO 14496-12, 8.3.2: the matrix.
    one = 1 << 16
    data[start : start + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


def slow_down(path, number):
    """Makes the frames of an mp4 after the first `number` last three times as long."""
    data = bytearray(path.read_bytes())
    start = data.index(b"stts")  # ISO 14496-12, 8.6.1.2: runs of equal durations.
    entries, count, delta = struct.unpack_from(">3I", data, start + 8)
    assert entries == 1
    runs = struct.pack(">5I", 2, number, delta, count - number, 3 * delta)
    data[start + 8 : start + 20] = runs
    for box in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts"):
        size = data.index(box) - 4
        struct.pack_into(">I", data, size, struct.unpack_from(">I", data, size)[0] + 8)
    # The one edit, 8.6.6: otherwise it would end the video where it ended before.
    struct.pack_into(">I", data, data.index(b"elst") + 12, 1 << 24)
    # The frames' places in the file would have to change, too.
    assert data.index(b"mdat") < data.index(b"moov")
    path.write_bytes(data)
