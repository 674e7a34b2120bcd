//! Containers and codecs that deploy/README.md names, against ffmpeg: turned, cut and put in another order by an edit list
//! (where the container has them), with a rate that varies and a sound that begins late, and cut short.
//!
//! What cannot exist is not in the table: AVI and transport streams have no orientation and no edit list, Matroska and WebM no edit
//! list, a sound alone no orientation and no rate of pictures, and raw AAC, MP3, FLAC and WAV no time at which they begin. In AVI a
//! picture that is missing leaves an empty chunk, and sound begins with the picture.

use crate::row::Container::{
    Avi, Flv, Matroska, Mov, Mp4 as IsoMp4, Ogg, ProgramStream, Sound, TransportStream, WebM, WindowsMedia,
};
use crate::row::{Codec, Container, Row, check_rows};

const NONE: Codec = ("", "");
const H264: Codec = ("H.264", "-c:v libx264 -preset ultrafast -bf 2 -g 12");
const H265: Codec = ("H.265", "-c:v libx265 -preset ultrafast -x265-params log-level=error:keyint=12 -tag:v hvc1");
const VP8: Codec = ("VP8", "-c:v libvpx -deadline realtime -cpu-used 8 -b:v 400k -g 12");
const VP9: Codec = ("VP9", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -b:v 400k -g 12");
const AV1: Codec = ("AV1", "-c:v libaom-av1 -cpu-used 8 -usage realtime -b:v 400k -g 12");
const MPEG1: Codec = ("MPEG-1", "-c:v mpeg1video -b:v 600k -bf 2 -g 12");
const MPEG2: Codec = ("MPEG-2", "-c:v mpeg2video -b:v 600k -bf 2 -g 12");
const MPEG4: Codec = ("MPEG-4", "-c:v mpeg4 -q:v 3 -bf 2 -g 12");
const MJPEG: Codec = ("Motion JPEG", "-c:v mjpeg -q:v 3");
const PRORES: Codec = ("ProRes", "-c:v prores_ks");
const FFV1: Codec = ("FFV1", "-c:v ffv1");
const WMV2: Codec = ("WMV 8", "-c:v wmv2 -q:v 3 -g 12");
const THEORA: Codec = ("Theora", "-c:v libtheora -q:v 8 -g 12");
const AAC: Codec = ("AAC", "-c:a aac -b:a 128k");
const OPUS: Codec = ("Opus", "-c:a libopus -b:a 128k");
const MP2: Codec = ("MP2", "-c:a mp2 -b:a 192k");
const AC3: Codec = ("AC-3", "-c:a ac3 -b:a 192k");
const MP3: Codec = ("MP3", "-c:a libmp3lame -b:a 128k");
const VORBIS: Codec = ("Vorbis", "-c:a libvorbis -b:a 128k");
const FLAC: Codec = ("FLAC", "-c:a flac -strict -2");
const PCM: Codec = ("PCM", "-c:a pcm_s16le");
const ALAC: Codec = ("ALAC", "-c:a alac");
const EAC3: Codec = ("E-AC-3", "-c:a eac3 -b:a 192k");
const WMA: Codec = ("WMA 2", "-c:a wmav2 -b:a 128k");
const PCM_BE: Codec = ("PCM", "-c:a pcm_s16be");
const ADPCM: Codec = ("ADPCM", "-c:a adpcm_ms");

/// The rows, in the order of deploy/README.md.
const ROWS: &[Row] = &[
    (IsoMp4, H264, AAC),
    (IsoMp4, H265, MP3),
    (IsoMp4, VP9, OPUS),
    (IsoMp4, AV1, OPUS),
    (IsoMp4, MPEG4, AC3),
    (IsoMp4, H264, EAC3),
    (IsoMp4, H264, FLAC),
    (IsoMp4, H264, ALAC),
    (Mov, H264, AAC),
    (Mov, H265, AAC),
    (Mov, PRORES, PCM),
    (Mov, MJPEG, ALAC),
    (Matroska, H264, AAC),
    (Matroska, H265, MP3),
    (Matroska, VP8, VORBIS),
    (Matroska, VP9, OPUS),
    (Matroska, AV1, OPUS),
    (Matroska, MPEG2, AC3),
    (Matroska, MPEG4, PCM),
    (Matroska, MJPEG, FLAC),
    (Matroska, PRORES, MP2),
    (Matroska, FFV1, FLAC),
    (Matroska, H264, EAC3),
    (WebM, VP8, OPUS),
    (WebM, VP9, VORBIS),
    (WebM, AV1, OPUS),
    (WebM, VP9, OPUS),
    (TransportStream, H264, AAC),
    (TransportStream, H265, AAC),
    (TransportStream, MPEG2, MP2),
    (TransportStream, H264, MP3),
    (TransportStream, H264, AC3),
    (TransportStream, H264, EAC3),
    (ProgramStream, MPEG1, MP2),
    (ProgramStream, MPEG2, MP2),
    (ProgramStream, MPEG2, AC3),
    (Avi, MPEG4, MP3),
    (Avi, MJPEG, AC3),
    (Avi, H264, PCM),
    (Flv, H264, AAC),
    (Flv, H264, MP3),
    (WindowsMedia, WMV2, MP3),
    (WindowsMedia, WMV2, WMA),
    (Ogg, THEORA, VORBIS),
    (Ogg, THEORA, FLAC),
    (Sound("M4A", "m4a"), NONE, AAC),
    (Sound("M4A", "m4a"), NONE, ALAC),
    (Sound("MP3", "mp3"), NONE, MP3),
    (Sound("MP2", "mp2"), NONE, MP2),
    (Sound("ADTS", "aac"), NONE, AAC),
    (Sound("AC-3", "ac3"), NONE, AC3),
    (Sound("Ogg", "ogg"), NONE, VORBIS),
    (Sound("Ogg", "ogg"), NONE, OPUS),
    (Sound("Ogg", "oga"), NONE, FLAC),
    (Sound("FLAC", "flac"), NONE, FLAC),
    (Sound("Matroska", "mka"), NONE, OPUS),
    (Sound("WAV", "wav"), NONE, PCM),
    (Sound("WAV", "wav"), NONE, ADPCM),
    (Sound("AIFF", "aiff"), NONE, PCM_BE),
];

/// The rows of a container, sound alone apart.
fn rows(of: Container) -> Vec<Row> {
    ROWS.iter().filter(|(container, ..)| *container == of).copied().collect()
}

/// The rows of sounds alone that are called something.
fn sounds(of: &[&str]) -> Vec<Row> {
    ROWS.iter().filter(|(container, ..)| matches!(container, Sound(name, _) if of.contains(name))).copied().collect()
}

/// Names that differ, in the order in which they come first, with commas between them.
fn listed(names: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = Vec::new();
    names.filter(|name| !name.is_empty()).for_each(|name| {
        if !all.contains(&name) {
            all.push(name)
        }
    });
    all.join(", ")
}

#[test]
fn the_readme_names_what_the_table_has_and_nothing_else() {
    let named =
        |of: &str| -> Vec<Row> { ROWS.iter().filter(|(container, ..)| container.name() == of).copied().collect() };
    let mut table = String::new();
    let containers = listed(ROWS.iter().map(|(container, ..)| container.name().to_owned()));
    for container in containers.split(", ") {
        let of = named(container);
        let pictures = listed(of.iter().map(|(_, (name, _), _)| (*name).to_owned()));
        let sound = listed(of.iter().map(|(container, _, (codec, _))| match container {
            Sound(name, _) if name != codec => {
                format!("{name} ({})", listed(sounds(&[name]).iter().map(|(.., (codec, _))| (*codec).to_owned())))
            }
            _ => (*codec).to_owned(),
        }));
        table += &format!("| {container} | {pictures} | {sound} |\n").replace("|  |", "| |");
    }
    let readme = std::fs::read_to_string(
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy").join("README.md"),
    )
    .unwrap();
    let table = format!("| container | pictures | sound |\n| --- | --- | --- |\n{table}\n");
    assert!(readme.contains(&table), "deploy/README.md has another table than\n{table}");
}

#[test]
fn mp4_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(IsoMp4)[..4]);
}

#[test]
fn mp4_of_other_sounds_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(IsoMp4)[4..]);
}

#[test]
fn mov_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(Mov));
}

#[test]
fn matroska_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(Matroska)[..5]);
}

#[test]
fn matroska_of_older_codecs_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(Matroska)[5..]);
}

#[test]
fn webm_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(WebM));
}

#[test]
fn a_transport_stream_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(TransportStream));
}

#[test]
fn a_program_stream_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(ProgramStream));
}

#[test]
fn avi_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(Avi));
}

#[test]
fn flv_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(Flv));
}

#[test]
fn windows_media_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(WindowsMedia));
}

#[test]
fn a_film_in_ogg_is_read_as_ffmpeg_reads_it() {
    check_rows(&rows(Ogg));
}

#[test]
fn sound_in_a_container_is_read_as_ffmpeg_reads_it() {
    check_rows(&sounds(&["M4A", "Matroska", "Ogg"]));
}

#[test]
fn sound_without_a_container_is_read_as_ffmpeg_reads_it() {
    check_rows(&sounds(&["MP3", "MP2", "ADTS", "AC-3"]));
}

#[test]
fn flac_wav_and_aiff_are_read_as_ffmpeg_reads_them() {
    check_rows(&sounds(&["FLAC", "WAV", "AIFF"]));
}
