//! Frames of videos that are turned, squeezed, coloured otherwise, or not there, held against what the videos are made of.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use deploy::export::media::{Media, Wishes};
use deploy::export::start::Start;
use deploy::export::{Export, contact_sheet, frames, timeline};
use protocol::event::TimeRange;
use protocol::plan::MediaInfo;
use tests::media::ffmpeg;

use super::pixels::{NEAR, Pixels, distance};

/// Frames a second of the videos.
const RATE: f64 = 25.0;
/// Width and height of frames at most, pixels.
const MOST: [u32; 2] = [200, 200];

/// Video of some frames, which a probe would tell `size` of.
async fn media(file: &Path, frames: u64, size: [u32; 2]) -> anyhow::Result<Media> {
    let info = MediaInfo {
        v: 1,
        duration_s: frames as f64 / RATE,
        frames,
        avg_fps: RATE,
        width: size[0],
        height: size[1],
        rotation: 0,
        mirrored: false,
        has_audio: false,
        audio_samples: 0,
        container: if file.extension().is_some_and(|e| e == "ts") { "mpegts" } else { "mp4" }.to_owned(),
        codecs: Vec::new(),
        content_id: String::new(),
        notes: Vec::new(),
    };
    let start = Start::of(file).await;
    Media::new(&file.to_string_lossy(), &info, start, Wishes::default()).map_err(anyhow::Error::msg)
}

/// Makes a video; `source` is a graph of ffmpeg's filters.
fn made(dir: &Path, name: &str, source: &str, options: &str) -> anyhow::Result<PathBuf> {
    let file = dir.join(name);
    let x264 = "-c:v libx264 -preset ultrafast -bf 2 -g 12 -pix_fmt yuv420p";
    ffmpeg(&format!("-f lavfi -i {source} {x264} {options}"), &file)?;
    Ok(file)
}

/// A frame as pixels.
async fn frame(media: &Media, number: u64, dir: &Path) -> anyhow::Result<Pixels> {
    let pictures = media.pictures.as_ref().context("pictures")?;
    let jpeg = frames::jpeg(media, pictures, number, MOST).await.map_err(anyhow::Error::msg)?;
    let file = dir.join("frame.jpg");
    std::fs::write(&file, jpeg)?;
    Pixels::of(&format!("-i {}", file.display()), dir)
}

#[tokio::test]
async fn a_frame_is_the_one_of_its_number_whatever_the_container() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for name in ["v.mp4", "v.ts"] {
        // Each frame is brighter than the one before by more than two JPEGs differ.
        let grey = "color=s=64x64:r=25:d=1,format=yuv420p,geq=lum=20+9*N:cb=128:cr=128";
        let file = made(dir.path(), name, grey, "-color_range tv")?;
        let media = media(&file, 25, [64, 64]).await?;
        for number in [0, 1, 11, 12, 13, 24] {
            let pixels = frame(&media, number, dir.path()).await?;
            let number_of = |limited: f64| (limited * 219.0 / 255.0 + 16.0 - 20.0) / 9.0;
            let found = number_of(pixels.mean([0, 0, pixels.width, pixels.height])[1]);
            ensure!((found - number as f64).abs() < 0.3, "{name}: frame {number} is {found:.2}");
        }
        // Behind the end it is the last one, which is still shown then; far behind it there is none.
        let last = frame(&media, 100, dir.path()).await?.mean([0, 0, 64, 64]);
        ensure!(distance(last, frame(&media, 24, dir.path()).await?.mean([0, 0, 64, 64])) < 1.0, "{name}: {last:?}");
        let error = frame(&media, 1000, dir.path()).await.err().context("a frame of nothing")?.to_string();
        ensure!(error.contains("no frame 1000 (00:00:40:00)") && error.contains(name), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_frame_is_upright_in_its_shape_and_in_its_colours() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (red, blue) = ([200.0, 30.0, 40.0], [20.0, 60.0, 220.0]);
    // Upright it is 120 x 160, red above and blue below; it is stored lying, and the file says how to turn it.
    let flag = "color=c=0xc81e28:s=120x160:r=25:d=0.4,drawbox=y=80:h=80:color=0x143cdc:t=fill";
    let lying = made(dir.path(), "lying.mp4", &format!("{flag},transpose=cclock"), "")?;
    let turned = dir.path().join("turned.mp4");
    ffmpeg(&format!("-i {} -c copy -metadata:s:v:0 rotate=270", lying.display()), &turned)?;
    // Stored in half its width.
    let squeezed = made(dir.path(), "squeezed.mp4", &format!("{flag},scale=60:160,setsar=2"), "")?;
    let colours = ":out_color_matrix=bt709:out_range=tv,format=yuv420p -colorspace bt709 -color_range tv";
    let hd = made(dir.path(), "hd.mp4", &format!("{flag},format=rgb24,scale=120:160{colours}"), "")?;
    for file in [turned, squeezed, hd] {
        let media = media(&file, 10, [120, 160]).await?;
        let picture = frame(&media, 5, dir.path()).await?;
        ensure!(
            [picture.width, picture.height] == [150, 200],
            "{}: {} x {}",
            file.display(),
            picture.width,
            picture.height
        );
        for (due, y) in [(red, 10), (blue, 110)] {
            let found = picture.mean([10, y, 130, 80]);
            ensure!(distance(found, due) < NEAR, "{}: {found:?}, not {due:?} at {y}", file.display());
        }
    }
    Ok(())
}

#[tokio::test]
async fn pictures_of_a_video_that_is_gone_meanwhile_name_it_and_the_frame() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = made(dir.path(), "gone.mp4", "testsrc2=s=64x64:r=25:d=1", "")?;
    let range = TimeRange { start_s: 0.2, end_s: 0.6, title: None };
    let export = Export::new(media(&file, 25, [64, 64]).await?, "x", &[range], 0.01);
    ensure!(contact_sheet::sheet(&export, 1).await.is_ok());
    std::fs::remove_file(&file)?;
    for outcome in [timeline::svg(&export).await, contact_sheet::sheet(&export, 1).await.map(|sheet| sheet.svg)] {
        let error = outcome.err().context("a picture of no video")?;
        ensure!(
            error.contains("no frame ") && error.contains("gone.mp4: ") && error.contains("No such file"),
            "{error}"
        );
    }
    Ok(())
}
