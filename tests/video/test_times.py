"""Times of 70 generated files: every clip's frame is the one that ffprobe and ffmpeg name.

The files differ in container, codec, frame rate, offset, edit list, order of decoding, GOP and in
where the picture begins. `helpers.times.check_times` judges them without any of our code.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.ffmpeg import ffmpeg
from helpers.times import check_times, numbered_frames, raw_input

SECONDS = 6
X264 = "-c:v libx264 -preset veryfast -g 50 -bf 3 -pix_fmt yuv420p"
X265 = "-c:v libx265 -preset ultrafast -bf 3 -g 40 -x265-params log-level=none -pix_fmt yuv420p"
VP8 = "-c:v libvpx -deadline realtime -b:v 1M -pix_fmt yuv420p"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M -pix_fmt yuv420p"
AV1 = "-c:v libaom-av1 -usage realtime -cpu-used 8 -b:v 1M -pix_fmt yuv420p"
MPEG2 = "-c:v mpeg2video -g 15 -bf 2 -q:v 2"
MPEG4 = "-c:v mpeg4 -g 30 -bf 2 -q:v 2"
MJPEG = "-c:v mjpeg -q:v 3 -pix_fmt yuvj420p"
OPEN_GOP = "-c:v libx264 -g 20 -bf 3 -x264-params open-gop=1:scenecut=0 -pix_fmt yuv420p"
HEVC_OPEN = X265.replace("log-level", "open-gop=1:scenecut=0:log-level").replace("40", "20")
PYRAMID = "-c:v libx264 -g 250 -bf 8 -x264-params b-pyramid=normal -pix_fmt yuv420p"
REFRESH = "-c:v libx264 -g 60 -bf 0 -x264-params intra-refresh=1 -pix_fmt yuv420p"
VARIABLE = (
    "-vf settb=1/1000,setpts='(N+0.45*mod(N\\,3)+if(gt(N\\,50)\\,40\\,0))/25/TB' "
    "-fps_mode passthrough -enc_time_base 1:1000 "
)
STILL = (
    "-vf settb=1/1000,setpts='(N+if(gt(N\\,60)\\,200\\,0))/25/TB' "
    "-fps_mode passthrough -enc_time_base 1:1000 "
)
TONE = "-f lavfi -i sine=f=300:d=8 "
COPY = "-i {} -c copy"
TRIM = "-ss 2.3 -i {} -c copy"
LATE = "-itsoffset 2.25 -i {} " + TONE + "-map 0:v -map 1:a -c:v copy -c:a "
LATE_SOUND = "-i {} -itsoffset 2.25 " + TONE + "-map 0:v -map 1:a -c:v copy -c:a "

CASES: dict[str, tuple[str, str, str]] = {
    # name: frame rate, encoding, and a second command whose input is the encoded file
    "h264.mp4": ("25", X264, ""),
    "h264.mov": ("30000/1001", X264, ""),
    "h264.mkv": ("24000/1001", X264, ""),
    "h264.ts": ("30000/1001", X264, ""),
    "h264.flv": ("24000/1001", X264, ""),
    "h264.avi": ("30000/1001", X264, ""),
    "h264.3gp": ("15", X264, ""),
    "h264.m2ts": ("24000/1001", X264, ""),
    "hevc.mp4": ("24000/1001", X265 + " -tag:v hvc1", ""),
    "hevc.mov": ("25", X265 + " -tag:v hvc1", ""),
    "hevc.mkv": ("30000/1001", X265, ""),
    "hevc.ts": ("25", X265, ""),
    "vp8.webm": ("25", VP8, ""),
    "vp8 with hidden frames.webm": ("30", VP8 + " -auto-alt-ref 1 -lag-in-frames 16", ""),
    "vp9.webm": ("30000/1001", VP9, ""),
    "vp9.mp4": ("25", VP9, ""),
    "av1.mp4": ("25", AV1, ""),
    "av1.mkv": ("24000/1001", AV1, ""),
    "mpeg2.ts": ("30000/1001", MPEG2, ""),
    "mpeg2.mkv": ("25", MPEG2, ""),
    "mpeg2.avi": ("25", MPEG2, ""),
    "mpeg4.mp4": ("30000/1001", MPEG4, ""),
    "mpeg4.avi": ("25", MPEG4, ""),
    "mpeg4.ts": ("25", MPEG4, ""),
    "mjpeg.avi": ("30", MJPEG, ""),
    "mjpeg.mov": ("24000/1001", MJPEG, ""),
    "flv1.flv": ("25", "-c:v flv -q:v 2", ""),
    "a.gif": ("25", "-c:v gif", ""),
    "33 ms.gif": ("30", "-c:v gif", ""),
    "variable.gif": ("25", VARIABLE + "-c:v gif", ""),
    "variable.mp4": ("25", VARIABLE + X264, ""),
    "variable.mkv": ("25", VARIABLE + X264, ""),
    "variable.ts": ("25", VARIABLE + X264, ""),
    "variable.webm": ("25", VARIABLE + VP9, ""),
    "variable.flv": ("25", VARIABLE + X264, ""),
    "a long still.mp4": ("25", STILL + X264, ""),
    "a long still.ts": ("25", STILL + X264, ""),
    "a long still.mov": ("25", STILL + X265 + " -tag:v hvc1", ""),
    "offset.mp4": ("25", X264 + " -output_ts_offset 14400.5", ""),
    "offset.mkv": ("25", X264 + " -output_ts_offset 7.3", ""),
    "offset.ts": ("25", X264 + " -output_ts_offset 7.3", ""),
    "offset.flv": ("25", X264 + " -output_ts_offset 7.3", ""),
    "offset.nut": ("25", X264 + " -output_ts_offset 7.3", ""),
    "wrapped clock.ts": ("25", X264 + " -output_ts_offset 95440", ""),
    "edit list.mp4": ("25", X264, TRIM),
    "edit list.mov": ("30000/1001", X265 + " -tag:v hvc1", TRIM),
    "trimmed.mkv": ("25", X264, TRIM),
    "trimmed.ts": ("25", X264, TRIM),
    "no edit list.mp4": ("25", X264 + " -use_editlist 0", ""),
    "negative offsets.mp4": ("25", X264 + " -movflags +negative_cts_offsets", ""),
    "coarse clock.mp4": ("30000/1001", X264 + " -video_track_timescale 600", ""),
    "fragments.mp4": ("25", X264 + " -movflags +frag_keyframe+empty_moov", ""),
    "short fragments.mp4": ("25", X264 + " -movflags dash -frag_duration 500000", ""),
    "without cues.mkv": ("25", X264 + " -live 1", ""),
    "late picture.mp4": ("25", X264, LATE + "aac"),
    "late picture.mkv": ("25", X264, LATE + "flac"),
    "late picture.ts": ("25", X264, LATE + "mp2"),
    "late picture.avi": ("25", MPEG4, LATE + "mp3"),
    "late sound.avi": ("25", X264, LATE_SOUND + "mp3"),
    "late sound.flv": ("25", X264, LATE_SOUND + "aac"),
    "open gop.mp4": ("25", OPEN_GOP, ""),
    "open gop.ts": ("25", OPEN_GOP, ""),
    "open gop.mkv": ("25", HEVC_OPEN, ""),
    "pyramid.mp4": ("25", PYRAMID, ""),
    "pyramid.avi": ("25", PYRAMID, ""),
    "intra refresh.mp4": ("25", REFRESH, ""),
    "5 frames a second.mp4": ("5", X264, ""),
    "120 frames a second.mp4": ("120", X264, ""),
    "joined.mkv": ("25", X264, "-stream_loop 1 " + COPY),
    "two frames.mp4": ("1/4", X264, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_every_frame_is_the_one_that_is_shown(tmp_path: Path, name: str) -> None:
    rate, encoding, then = CASES[name]
    above, _, below = rate.partition("/")
    frames = max(2, int(SECONDS * int(above) / int(below or 1)))
    path = tmp_path / name
    first = path.with_name(f"first{path.suffix}") if then else path
    ffmpeg(*raw_input(rate), *encoding.split(), first, data=numbered_frames(frames))
    if then:
        # A name with spaces stays one argument.
        ffmpeg(*(str(first) if part == "{}" else part for part in then.split()), path)
    shown = check_times(path, 1.0)
    assert len(shown) >= 0.55 * frames
    check_times(path, 0.37, shown)
