//! Command lines that no picture can come of.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::ensure;
use tests::harness::vidi;
use tests::media::video;

use super::said;

#[test]
fn what_cannot_become_a_picture_is_told_before_anything_is_asked() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let inside = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let clip = inside("clip.mp4");
    video(Path::new(&clip), 2)?;
    let fontless = inside("fonts.conf");
    std::fs::write(&fontless, "<?xml version='1.0'?><fontconfig><dir>/nowhere</dir></fontconfig>")?;
    let run = |args: &[&str], variable: (&str, &str), code: i32, says: &str| -> anyhow::Result<()> {
        let mut command = Command::new(vidi()?);
        // Nobody answers there: what is told before that needs no broker.
        command.args(args).args(["--set", "bus.url=nats://127.0.0.1:9"]).stdin(Stdio::null());
        let output = command.env("VIDI_STATE", dir.path()).env(variable.0, variable.1).output()?;
        ensure!(output.status.code() == Some(code) && said(&output).contains(says), "{args:?}: {}", said(&output));
        Ok(())
    };
    let ask = |args: &[&str], variable: (&str, &str), says: &str| {
        run(&[&["ask", &clip, "a dog"], args].concat(), variable, 2, says)
    };
    let (svg, png, jpg) = (inside("x.svg"), inside("x.png"), inside("x.jpg"));
    let none = ("LANG", "C");
    ask(&["--timeline", &inside("x.gif")], none, ".svg or .png")?;
    ask(&["--timeline", &inside("x")], none, ".svg or .png")?;
    ask(&["--contact-sheet", &png], none, "name it .jpg")?;
    ask(&["--timeline", &inside("gone/x.svg")], none, "make it first")?;
    ask(&["--contact-sheet", &jpg, "--sheet-rows", "0"], none, "--sheet-rows")?;
    ask(&["--sheet-rows", "2"], none, "--contact-sheet")?;
    ask(&["--timeline", &svg, "--export", &format!("csv:{svg}")], none, "2 exports go to 1 files")?;
    ask(&["--timeline", &svg], ("PATH", ""), "install it")?;
    ask(&["--timeline", &png], ("FONTCONFIG_FILE", &fontless), "no font is installed")?;
    run(&["ask", "/gone.mp4", "a dog", "--timeline", &svg], none, 2, "/gone.mp4 is not here")?;
    run(&["trace", "no job"], none, 2, "no job")?;
    run(&["trace", "x", "--svg", &png], none, 2, "name it .svg")?;
    run(&["trace", "x", "--svg", &inside("gone/x.svg")], none, 2, "make it first")?;
    run(&["trace", "x"], none, 5, "127.0.0.1:9")?;
    ensure!(![svg, png, jpg].iter().any(|file| Path::new(file).exists()), "a file of nothing");
    Ok(())
}
