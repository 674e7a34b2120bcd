//! Names of files on the command line and in the environment: of none, of none in UTF-8, and of what must not be replaced.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use runtime::process::Exit;
use tests::harness::vidi;
use tests::media::video;

use super::{expect, run, said};

#[test]
fn a_video_that_is_not_there_is_told_before_anything_is_started_or_asked() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let missing = dir.path().join("missing.mp4").display().to_string();
    let broker = ["--set", "bus.url=nats://127.0.0.1:9"];
    // A broker that cannot be started would be told first.
    let ask = |video: &str, more: &[&str]| -> anyhow::Result<Output> {
        let mut command = Command::new(vidi()?);
        command.args(["ask", video, "a dog", "--weights", "random:tiny"]).args(more);
        command.env("VIDI_STATE", dir.path()).env("VIDI_NATS_SERVER", "/nowhere").current_dir(dir.path());
        Ok(command.stdin(Stdio::null()).output()?)
    };
    for (video, more) in [
        ("mistyped.mp4", &[][..]),
        ("./mistyped.mp4", &broker),
        ("no/mistyped.mp4", &broker),
        ("file:mistyped.mp4", &broker),
        (&missing, &[]),
        (&format!("file://{missing}"), &[]),
    ] {
        let output = ask(video, more)?;
        expect(&output, Exit::Usage, "name a video that is there").with_context(|| video.to_owned())?;
        ensure!(
            said(&output).contains("missing.mp4") || said(&output).contains("mistyped.mp4 (in /"),
            "{}",
            said(&output)
        );
    }
    // It may be there where the stages of that broker run.
    expect(&ask(&missing, &broker)?, Exit::Broker, "127.0.0.1:9")
}

/// Everything that a process has from outside and that need not be UTF-8, none of which is: the working directory, `PWD`, other
/// programs' variables, directories of temporary files and of state, checkpoint, video, files of the answer.
#[test]
fn names_that_are_not_utf_8_are_files_as_others_are() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let odd = |name: &str| OsString::from_vec([&b"\xff "[..], name.as_bytes()].concat());
    let here = dir.path().join(odd("\"here\""));
    let temporary = here.join(odd("tmp"));
    std::fs::create_dir_all(&temporary)?;
    let plain = dir.path().join("clip.mp4");
    video(&plain, 2)?;
    std::fs::rename(&plain, here.join(odd("clip.mp4")))?;
    let run = |args: &[&OsStr]| -> anyhow::Result<Output> {
        let mut command = Command::new(vidi()?);
        command
            .args(args)
            .current_dir(&here)
            .env("PWD", &here)
            .env("OTHER", odd("value"))
            .env("VIDI_CONFIG", odd("vidi.toml"));
        command.env("TMPDIR", &temporary).env("VIDI_STATE", here.join(odd("state"))).stdin(Stdio::null());
        let output = command.output()?;
        ensure!(!said(&output).contains("panicked"), "{args:?}: {}", said(&output));
        Ok(output)
    };
    std::fs::write(here.join(odd("vidi.toml")), "[llm]\nmax_prompt_tokens = 77\n")?;
    let [clip, model, svg, film] = ["clip.mp4", "model", "a.svg", "film.mp4"].map(odd);
    let export = OsString::from_vec([&b"json:"[..], odd("ranges").as_bytes()].concat());
    let commands: [&[&OsStr]; 5] = [
        &["demo-model".as_ref(), &model],
        &["inspect".as_ref(), &model],
        &["plan".as_ref(), &model, "--video-seconds".as_ref(), "2".as_ref()],
        &["demo-video".as_ref(), &film, "--seconds".as_ref(), "8".as_ref()],
        &[
            "ask".as_ref(),
            &clip,
            "a dog".as_ref(),
            "--model".as_ref(),
            &model,
            "--max-new-tokens".as_ref(),
            "2".as_ref(),
            "--export".as_ref(),
            &export,
            "--timeline".as_ref(),
            &svg,
        ],
    ];
    for args in commands {
        let output = run(args)?;
        ensure!(output.status.success(), "{args:?}: {}: {}", output.status, said(&output));
    }
    for file in ["film.mp4", "film.json", "ranges", "a.svg"] {
        ensure!(here.join(odd(file)).is_file(), "{file} was written elsewhere");
    }
    let printed = run(&["config".as_ref(), "print".as_ref()])?;
    ensure!(String::from_utf8_lossy(&printed.stdout).contains("max_prompt_tokens = 77"), "{}", said(&printed));
    // What is text is refused by name.
    let set = OsString::from_vec(b"log.filter=geheim\xff".to_vec());
    expect(
        &run(&["config".as_ref(), "print".as_ref(), "--set".as_ref(), &set])?,
        Exit::Usage,
        "argument 4 (log.filter=...)",
    )?;
    let mut command = Command::new(vidi()?);
    let output =
        command.args(["config", "print"]).env("VIDI_LOG_FILTER", odd("geheim")).stdin(Stdio::null()).output()?;
    expect(&output, Exit::Usage, "VIDI_LOG_FILTER")?;
    ensure!(!said(&output).contains("geheim"), "{}", said(&output));
    Ok(())
}

#[test]
fn no_device_and_no_link_is_replaced_by_a_file_of_ours() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let model = tests::harness::checkpoint("tied").display().to_string();
    let [target, link] = ["target", "link.mp4"].map(|name| dir.path().join(name));
    std::fs::write(&target, "before")?;
    std::os::unix::fs::symlink(&target, &link)?;
    let [link, here] = [&link, dir.path()].map(|path| path.display().to_string());
    for place in ["/dev/null", &link, &here] {
        let output = run(&["quantize", &model, "--to", "q8", "--out", place])?;
        expect(&output, Exit::Usage, "only a regular file is replaced").with_context(|| place.to_owned())?;
    }
    let output = run(&["demo-video", &link, "--seconds", "8"])?;
    expect(&output, Exit::Other, "only a regular file is replaced")?;
    ensure!(std::fs::symlink_metadata("/dev/null")?.file_type().is_char_device());
    ensure!(std::fs::read(&target)? == b"before" && std::fs::read_dir(dir.path())?.count() == 2);
    Ok(())
}
