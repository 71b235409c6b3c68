"""Random files: container x codec x GOP x B-frames x open or closed x rate, and what happens to files on their way."""

import random
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from tests.frames.writing import Coding, remux, write

RATES = (Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(24), Fraction(50), Fraction(12))
CONTAINERS = {
    "h264": ("mp4", "mov", "mkv", "avi", "ts", "m2ts", "mpg", "asf", "flv", "h264", "fragmented"),
    "hevc": ("mp4", "mov", "mkv", "ts", "hevc", "fragmented"),
    "mpeg4": ("mp4", "mov", "mkv", "avi", "ts", "asf", "m4v"),
    "mpeg2": ("mpg", "ts", "mkv", "avi", "mpeg2video"),
    "mpeg1": ("mpg", "avi"),
    "vp8": ("webm", "mkv", "avi"),
    "vp9": ("webm", "mkv", "mp4"),
    "av1": ("mkv", "mp4", "webm"),
    "mjpeg": ("avi", "mov", "mkv"),
    "wmv": ("asf", "avi"),
    "flv1": ("flv", "avi"),
}
WEIGHTS = {"h264": 9, "hevc": 5, "mpeg4": 5, "mpeg2": 3, "vp9": 2}
MUXERS = {
    "m2ts": ("mpegts", {"mpegts_m2ts_mode": "1"}),
    "ts": ("mpegts", {}),
    "mpg": ("mpeg", {}),
    "fragmented": ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "m4v": ("m4v", {}),
    "mpeg2video": ("mpeg2video", {}),
    "mkv": ("matroska", {}),
}


@dataclass(frozen=True)
class Drawn:
    """A random file."""

    path: Path
    frames: int
    is_whole: bool
    """Every picture that was encoded should be shown."""
    story: str


def draw(rng: random.Random, folder: Path, number: int) -> Drawn:
    """Write one random file."""
    codec = rng.choices(list(CONTAINERS), [WEIGHTS.get(name, 1) for name in CONTAINERS])[0]
    container = rng.choice(CONTAINERS[codec])
    frames = rng.choice((rng.randint(1, 12), rng.randint(13, 120), rng.randint(121, 400)))
    coding, words = coding_of(rng, codec, container)
    path = folder / f"{number:04}_{codec}.{container}"
    muxer, options = MUXERS.get(container, (None, {}))
    write(path, frames, coding, muxer=muxer, mux_options=options)
    story, is_whole = on_the_way(rng, path, container)
    return Drawn(path, frames, is_whole, f"{path.name} {frames} frames {words} {story}")


def coding_of(rng: random.Random, codec: str, container: str) -> tuple[Coding, str]:
    """Draw how pictures are coded, within what encoder and container allow."""
    gop, b_frames = rng.choice((1, 4, 12, 30, 48, 250)), rng.choice((0, 0, 1, 2, 3, 5))
    rate = rng.choice(RATES[:3] if codec in ("mpeg1", "mpeg2") else RATES)
    if codec == "h264":
        return _x264(rng, gop, b_frames, rate)
    if codec == "hevc":
        return _x265(rng, gop, b_frames, rate)
    options = {"g": str(gop)}
    encoders = {"mpeg4": "mpeg4", "mpeg2": "mpeg2video", "mpeg1": "mpeg1video", "vp8": "libvpx", "vp9": "libvpx-vp9"}
    encoders |= {"av1": "libsvtav1", "mjpeg": "mjpeg", "wmv": rng.choice(("wmv1", "wmv2", "msmpeg4")), "flv1": "flv"}
    if codec in ("mpeg4", "mpeg2", "mpeg1"):
        options |= {"bf": str(min(b_frames, 2)), "qmin": "2", "qmax": "3"}
        options |= {"flags": "+cgop", "sc_threshold": "1000000000"} if rng.random() < 0.3 and codec != "mpeg4" else {}
    if codec in ("vp8", "vp9"):
        options |= {"deadline": "realtime", "cpu-used": "8", "b": "2M", "auto-alt-ref": rng.choice("01"), "lag-in-frames": "10"}
    if codec == "av1":
        options |= {"preset": "11", "crf": "20"}
    if codec in ("wmv", "flv1", "mjpeg"):
        options |= {"qmin": "2", "qmax": "3"}
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return Coding(encoder=encoders[codec], options=options, pixels=pixels, rate=rate), f"g={gop} {options}"


def _x264(rng: random.Random, gop: int, b_frames: int, rate: Fraction) -> tuple[Coding, str]:
    params = [f"bframes={b_frames}", f"b-pyramid={rng.choice(('none', 'strict', 'normal'))}"]
    params += [f"open-gop={rng.choice('01')}", f"scenecut={rng.choice(('0', '40'))}", f"ref={rng.choice('134')}"]
    params += ["aud=1"] if rng.random() < 0.3 else []
    params += ["slices=3"] if rng.random() < 0.2 else []
    if rng.random() < 0.15 and gop > 4:
        params = ["intra-refresh=1", "bframes=0", f"keyint={gop}"]
    options = {"preset": rng.choice(("veryfast", "ultrafast", "medium")), "crf": "14", "g": str(gop)}
    pixels = rng.choice(("yuv420p", "yuv420p", "yuv420p", "yuv444p"))
    private = ":".join(params)
    return Coding(options=options, pixels=pixels, rate=rate, private=private), f"g={gop} {private} {options['preset']}"


def _x265(rng: random.Random, gop: int, b_frames: int, rate: Fraction) -> tuple[Coding, str]:
    params = [f"keyint={max(gop, 2)}", f"bframes={b_frames}", f"open-gop={rng.choice('01')}", f"b-pyramid={rng.choice('01')}"]
    params += ["aud=1"] if rng.random() < 0.3 else []
    params += ["temporal-layers=1"] if rng.random() < 0.2 else []
    private = ":".join([*params, "min-keyint=1", "crf=14", "rc-lookahead=10"])
    coding = Coding(encoder="libx265", options={"preset": "ultrafast"}, rate=rate, private=private, width=128, height=96)
    return coding, private


def on_the_way(rng: random.Random, path: Path, container: str) -> tuple[str, bool]:
    """Do to a file what happens to files: cut, joined, trimmed, its table of keyframes lost."""
    content = path.read_bytes()
    if container in ("ts", "m2ts") and rng.random() < 0.4:
        size = 188 if container == "ts" else 192
        if rng.random() < 0.5:
            begin = int(len(content) * rng.uniform(0.05, 0.6)) // size * size
            path.write_bytes(content[begin + rng.choice((0, 77)) :])
            return "cut at its beginning", False
        path.write_bytes(content * rng.choice((2, 3)))
        return "joined to itself", False
    if container in ("mp4", "mov") and rng.random() < 0.3:
        if rng.random() < 0.5:
            path.write_bytes(content.replace(b"stss", b"free"))
            return "without its table of keyframes", True
        return _trimmed(rng, path), False
    return "", True


def _trimmed(rng: random.Random, path: Path) -> str:
    """Cut the beginning off without coding anew: an edit list hides what is decoded and not shown."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [(p.pts, p.dts, p.is_keyframe) for p in container.demux(stream) if p.size]
    cut = rng.choice(times)[0]
    first = max(number for number, (pts, _, key) in enumerate(times) if key and (pts <= cut or number == 0))

    def change(number: int, packet: av.Packet) -> bool:
        packet.pts, packet.dts = packet.pts - cut, packet.dts - cut
        return number >= first

    target = path.with_suffix(".trimmed" + path.suffix)
    remux(path, target, mux_options={"avoid_negative_ts": "disabled"}, change=change)
    target.replace(path)
    return f"trimmed at {cut}"
