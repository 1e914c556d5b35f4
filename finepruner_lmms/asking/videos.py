"""Reading the frames of a video."""

from __future__ import annotations

from typing import Any

import numpy as np

from finepruner_lmms.asking.conversation import Video
from finepruner_lmms.errors import FieldError, first_line

_DECODERS = ("torchcodec", "pyav", "opencv")
_FRAMES = 32


def read_video(video: Video, num_frames: int | None = None) -> tuple[Any, Any]:
    """`num_frames` frames at most, evenly spread, as `[frames, H, W, 3]`, and what transformers notes about them.

    `FieldError` for a file that cannot be read.
    """
    from transformers.video_utils import VideoMetadata

    most = num_frames or _FRAMES
    if not isinstance(video.source, str):
        frames = list(video.source)
        places = _spread(len(frames), most)
        about = VideoMetadata(total_num_frames=len(frames), fps=1.0, frames_indices=places, duration=float(len(frames)))
        return np.stack([np.asarray(frames[place]) for place in places]), about
    return _from_file(video.source, most)


def _from_file(path: str, most: int) -> tuple[Any, Any]:
    from transformers.video_utils import load_video

    def places(metadata: Any, **_: Any) -> Any:
        return np.array(_spread(metadata.total_num_frames, most))

    for decoder in _DECODERS:
        try:
            return load_video(path, backend=decoder, sample_indices_fn=places)
        except ImportError:
            continue
        except Exception as error:
            raise FieldError("video", f"cannot read {path!r}: {first_line(error)}", value=path) from error
    raise FieldError("video", f"nothing here decodes {path!r}", value=path, fix="pip install av")


def _spread(count: int, most: int) -> list[int]:
    """At most so many of `count` frames, evenly spread from the first to the last."""
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / max(most - 1, 1)) for place in range(most)]
