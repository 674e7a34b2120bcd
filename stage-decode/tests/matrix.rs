//! Containers and codecs that deploy/README.md names, against ffmpeg: turned, cut and put in another order by an edit list
//! (where the container has them), with a rate that varies and a sound that begins late, and cut short.
//!
//! What cannot exist is not in the table: AVI and transport streams have no orientation and no edit list, Matroska and WebM no edit
//! list, a sound alone no orientation and no rate of pictures, and raw AAC, MP3, FLAC and WAV no time at which they begin. In AVI a
//! picture that is missing leaves an empty chunk, and sound begins with the picture.

#[path = "support/row.rs"]
mod row;
mod support;

use row::Container::{
    Avi, Flv, Matroska, Mov, Mp4 as IsoMp4, Ogg, ProgramStream, Sound, TransportStream, WebM, WindowsMedia,
};
use row::check_rows;

const H264: &str = "-c:v libx264 -preset ultrafast -bf 2 -g 12";
const H265: &str = "-c:v libx265 -preset ultrafast -x265-params log-level=error:keyint=12 -tag:v hvc1";
const VP8: &str = "-c:v libvpx -deadline realtime -cpu-used 8 -b:v 400k -g 12";
const VP9: &str = "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 400k -g 12";
const AV1: &str = "-c:v libaom-av1 -cpu-used 8 -usage realtime -b:v 400k -g 12";
const MPEG2: &str = "-c:v mpeg2video -b:v 600k -bf 2 -g 12";
const MPEG4: &str = "-c:v mpeg4 -q:v 3 -bf 2 -g 12";
const MJPEG: &str = "-c:v mjpeg -q:v 3";
const AAC: &str = "-c:a aac -b:a 128k";
const OPUS: &str = "-c:a libopus -b:a 128k";
const MP2: &str = "-c:a mp2 -b:a 192k";
const AC3: &str = "-c:a ac3 -b:a 192k";
const MP3: &str = "-c:a libmp3lame -b:a 128k";
const VORBIS: &str = "-c:a libvorbis -b:a 128k";
const FLAC: &str = "-c:a flac";
const PCM: &str = "-c:a pcm_s16le";

const MPEG1: &str = "-c:v mpeg1video -b:v 600k -bf 2 -g 12";
const PRORES: &str = "-c:v prores_ks";
const FFV1: &str = "-c:v ffv1";
const WMV2: &str = "-c:v wmv2 -q:v 3 -g 12";
const THEORA: &str = "-c:v libtheora -q:v 8 -g 12";
const ALAC: &str = "-c:a alac";
const EAC3: &str = "-c:a eac3 -b:a 192k";
const WMA: &str = "-c:a wmav2 -b:a 128k";
const PCM_BE: &str = "-c:a pcm_s16be";
const ADPCM: &str = "-c:a adpcm_ms";

#[test]
fn mp4_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(IsoMp4, H264, AAC), (IsoMp4, H265, MP3), (IsoMp4, VP9, OPUS), (IsoMp4, AV1, OPUS)]);
    check_rows(&[(IsoMp4, MPEG4, AC3), (IsoMp4, H264, FLAC), (IsoMp4, H264, ALAC), (IsoMp4, H264, EAC3)]);
}

#[test]
fn mov_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(Mov, H264, AAC), (Mov, H265, AAC), (Mov, PRORES, PCM), (Mov, MJPEG, ALAC)]);
}

#[test]
fn matroska_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(Matroska, H264, AAC), (Matroska, H265, MP3), (Matroska, VP9, OPUS), (Matroska, AV1, OPUS)]);
    check_rows(&[(Matroska, MPEG2, AC3), (Matroska, FFV1, FLAC), (Matroska, VP8, VORBIS), (Matroska, MPEG4, PCM)]);
    check_rows(&[(Matroska, H264, EAC3), (Matroska, PRORES, MP2), (Matroska, MJPEG, ALAC)]);
}

#[test]
fn webm_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(WebM, VP8, OPUS), (WebM, VP9, OPUS), (WebM, AV1, OPUS), (WebM, VP9, VORBIS)]);
}

#[test]
fn a_transport_stream_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(TransportStream, H264, AAC), (TransportStream, H265, AAC), (TransportStream, MPEG2, MP2)]);
    check_rows(&[(TransportStream, H264, AC3), (TransportStream, H264, EAC3), (TransportStream, H264, MP3)]);
}

#[test]
fn a_program_stream_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(ProgramStream, MPEG2, MP2), (ProgramStream, MPEG2, AC3), (ProgramStream, MPEG1, MP2)]);
}

#[test]
fn avi_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(Avi, MPEG4, MP3), (Avi, H264, PCM), (Avi, MJPEG, AC3)]);
}

#[test]
fn flv_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(Flv, H264, AAC), (Flv, H264, MP3)]);
}

#[test]
fn windows_media_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(WindowsMedia, WMV2, MP3), (WindowsMedia, WMV2, WMA)]);
}

#[test]
fn a_film_in_ogg_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(Ogg, THEORA, VORBIS), (Ogg, THEORA, FLAC)]);
}

#[test]
fn sound_alone_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(Sound("m4a"), "", AAC), (Sound("m4a"), "", ALAC), (Sound("mp3"), "", MP3)]);
    check_rows(&[(Sound("mka"), "", OPUS), (Sound("ogg"), "", OPUS), (Sound("aiff"), "", PCM_BE)]);
}

#[test]
fn vorbis_alone_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(Sound("ogg"), "", VORBIS), (Sound("oga"), "", FLAC), (Sound("ac3"), "", AC3)]);
}

#[test]
fn raw_aac_is_read_as_ffmpeg_reads_it() {
    check_rows(&[(Sound("aac"), "", AAC), (Sound("mp2"), "", MP2)]);
}

#[test]
fn flac_and_wav_are_read_as_ffmpeg_reads_them() {
    check_rows(&[(Sound("flac"), "", FLAC), (Sound("wav"), "", PCM), (Sound("wav"), "", ADPCM)]);
}
