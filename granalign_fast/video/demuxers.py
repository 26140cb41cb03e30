"""FFmpeg's demuxers that may open a file: those of containers that hold their own picture or sound.

All others are refused before they read: playlists and scripts, which name other files or addresses
to open (concat, hls, dash, imf, sdp, avisynth), numbered images, which open their neighbours
(image2), devices, and text that FFmpeg renders (tty).
"""

from __future__ import annotations

_CONTAINERS = (
    "mov matroska avi mpegts mpeg flv live_flv kux asf asf_o ogg mxf mxg nut gxf wtv rm ivr ivf "
    "nsv nuv pva pmp ty dhav lmlm4 lvf lxf moflex mlv cine swf gif apng jpegxl_anim yuv4mpegpipe "
    "dv mpjpeg r3d ser sdr2 filmstrip msnwctcp simbiosis_imx pdv"
)
_RAW_STREAMS = (
    "h261 h263 h264 hevc vvc evc av1 obu m4v mpegvideo vc1 vc1test dirac dnxhd mjpeg mjpeg_2000 "
    "cavsvideo avs2 avs3 apv ipu ingenient"
)
_GAMES = (
    "bink smk roq film_cpk flic 4xm ea vmd vivo rpl thp psxstr xmv mvi mtv mv mm tmv c93 cdxl dxa "
    "dfa bfi bethsoftvid anm hnm idcin iv8 jv wc3movie wsvqa yop usm vividas rl2 sga paf gdv txd "
    "ipmovie iff nc argo_brp bmv"
)
# With these, the error can say that a file has no picture.
_SOUND = "wav mp3 flac aac ac3 eac3 aiff au caf ape amr dts w64 wv tta"

FORMAT_WHITELIST = ",".join(f"{_CONTAINERS} {_RAW_STREAMS} {_GAMES} {_SOUND}".split())
"""The value of FFmpeg's option ``format_whitelist``."""
