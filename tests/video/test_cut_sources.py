"""Cuts of files as phones, cameras, recorders and download tools write them.

Every frame of a cut is compared with the source, by ffprobe and ffmpeg on both sides: it must be
the picture that the source shows at that time, and no picture of the moment may be missing.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.ffmpeg import ffmpeg
from helpers.times import numbered_frames, raw_input, shown_frames

from granalign_fast.errors import GranAlignError
from granalign_fast.video.cut_containers import own_suffix
from granalign_fast.video.cutting import cut

RATE, FRAMES = 25, 250
X264 = "-c:v libx264 -preset veryfast -g 50 -bf 3 -pix_fmt yuv420p"
VP9 = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 1M -g 50"
OPEN = "-g 30 -bf 3 -x265-params open-gop=1:scenecut=0:log-level=none -pix_fmt yuv420p"
TONE = "-f lavfi -i sine=f=300:d=10 -map 0:v -map 1:a -shortest "
TWO_TONES = (
    "-f lavfi -i sine=f=300:d=10 -f lavfi -i sine=f=600:d=10 -map 0:v -map 1:a -map 2:a -shortest "
)
VARIABLE = (
    "-vf settb=1/1000,setpts='(N+0.45*mod(N\\,3)+if(gt(N\\,100)\\,40\\,0))/25/TB' "
    "-fps_mode passthrough -enc_time_base 1:1000 "
)
TRIM = "-ss 2.3 -i {} -c copy"

SOURCES: dict[str, tuple[str, str, bool]] = {
    # name: encoding, a second command whose input is the encoded file, whether it can be copied
    "DVD.vob": (TONE + "-c:a ac3 -c:v mpeg2video -g 15 -bf 2 -q:v 2 -f vob", "", True),
    "recorder.ts": (TONE + "-c:a ac3 -c:v mpeg2video -g 15 -bf 2 -q:v 2", "", True),
    "recorder 25 h.ts": (TONE + f"-c:a mp2 {X264} -output_ts_offset 90000", "", True),
    "dashcam.mp4": (TONE + f"-c:a aac {X264} -movflags +frag_keyframe+empty_moov", "", True),
    "stream.mp4": (TONE + f"-c:a aac {X264} -movflags dash -frag_duration 500000", "", True),
    "trimmed on a phone.mp4": (TONE + f"-c:a aac {X264}", TRIM, True),
    "camera.mov": (TONE + f"-c:a pcm_s24le {X264}", "", True),
    "camera jpeg.mov": (TONE + "-c:a pcm_s16be -c:v mjpeg -pix_fmt yuvj422p -q:v 2", "", True),
    "editor.mov": (TONE + "-c:a pcm_s16le -c:v prores_ks -pix_fmt yuv422p10le", "", True),
    "OBS.mkv": (TWO_TONES + f"-c:a aac {X264}", "", True),
    "interrupted.mkv": (TONE + f"-c:a libopus {X264} -live 1", "", True),
    "yt-dlp.webm": (TONE + f"-c:a libopus {VP9} -pix_fmt yuv420p", "", True),
    "alpha.webm": (f"{VP9} -pix_fmt yuva420p", "", True),
    "hevc open gop.mp4": (TONE + f"-c:a aac -c:v libx265 {OPEN} -tag:v hvc1", "", True),
    "intra refresh.mp4": (X264 + " -bf 0 -x264-params intra-refresh=1", "", True),
    "screen.mp4": (VARIABLE + X264, "", True),
    "lossless.mkv": (TONE + "-c:a flac -c:v ffv1", "", True),
    "anamorphic.mp4": (TONE + f"-c:a aac {X264} -vf setsar=16/11", "", True),
    "old camera.avi": (TONE + "-c:a pcm_u8 -c:v mjpeg -pix_fmt yuvj420p -q:v 2", "", True),
    "DivX.avi": (TONE + "-c:a libmp3lame -q:a 4 -c:v mpeg4 -bf 2 -q:v 2", "", False),
    "old phone.3gp": (TONE + "-ar 8000 -ac 1 -c:a aac -c:v h263 -s 128x96 -q:v 2", "", False),
    "a.gif": ("-c:v gif", "", False),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_cut_shows_what_the_source_shows(tmp_path: Path, name: str) -> None:
    encoding, then, can_be_copied = SOURCES[name]
    path = tmp_path / name
    first = path.with_name(f"first{path.suffix}") if then else path
    ffmpeg(*raw_input(str(RATE)), *encoding.split(), first, data=numbered_frames(FRAMES))
    if then:
        ffmpeg(*(str(first) if part == "{}" else part for part in then.split()), path)
    source = shown_frames(path)
    times = {one.number: one.time for one in source}
    out = tmp_path / f"cut{own_suffix(path)}"
    for exact in (False, True):
        if not exact and not can_be_copied:
            with pytest.raises(GranAlignError, match="--exact"):
                cut(path, 3.3, 5.9, out)
            continue
        for start, end in ((3.3, 5.9), (0.0, 2.1)):
            result = cut(path, start, end, out, exact=exact)
            assert not result.left_out
            # Sound may begin some milliseconds before the first picture, where a copy begins.
            assert result.start <= start + 0.03 and (not exact or result.start >= start - 0.001)
            shown = shown_frames(out)
            # A copy of a trimmed file begins with the hidden pictures before it.
            visible = [one for one in shown if one.time + result.start > -0.02]
            for one in visible:
                # The first frame of an exact cut may have begun before it.
                assert abs(times[one.number] - (one.time + result.start)) < 0.045
            begin = max(result.start, times[source[0].number])
            due = [time for time in times.values() if begin <= time < end]
            assert len(due) <= len(visible) <= len(due) + (1 if exact else 4)
