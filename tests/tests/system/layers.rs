//! Which layer of the configuration wins, in the process that a user starts and in the stages that it starts.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, ensure};
use config::layers::{PREFIX, VARIABLES};
use config::{Config, KvPrecision, WeightFormat};
use deploy::client;
use protocol::error::StageName;
use protocol::event::Event;
use protocol::message::{JobId, JobRequest};
use runtime::subject::{StreamName, Subjects};
use tests::harness::{Rig, Setup, checkpoint, root, terminal, vidi};
use tests::media::video;
use tests::own::file_of;

/// What tests misspell on purpose.
const MISSPELT: [&str; 5] = ["BUSS_URL", "LM_KV", "STAT", "ELSEWHERE_URL", "BUS_URLL"];

/// Runs `vidi config print` with a file, variables and flags.
fn print(file: Option<&str>, env: &[(&str, &str)], flags: &[&str]) -> anyhow::Result<Output> {
    let dir = tempfile::tempdir()?;
    let mut command = Command::new(vidi()?);
    if let Some(text) = file {
        let path = dir.path().join("vidi.toml");
        std::fs::write(&path, text)?;
        command.arg("--config").arg(path);
    }
    Ok(command.envs(env.iter().copied()).args(flags).args(["config", "print"]).stdin(Stdio::null()).output()?)
}

#[test]
fn settings_count_on_both_sides_of_a_subcommand_and_the_last_one_wins() -> anyhow::Result<()> {
    let set = [
        "--set",
        "llm.kv=q8",
        "--set=bus.ack_wait_s=7",
        "config",
        "--set",
        "llm.kv=q4",
        "print",
        "--set=bus.max_deliver=9",
    ];
    let output = Command::new(vidi()?).args(set).stdin(Stdio::null()).output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in ["kv = \"q4\"", "ack_wait_s = 7.0", "max_deliver = 9"] {
        ensure!(said.lines().any(|printed| printed == line), "no {line} in {said}");
    }
    Ok(())
}

/// What each layer says of the format of keys and values, and which one is in force.
#[test]
fn a_profile_is_below_a_file_below_the_environment_below_a_flag() -> anyhow::Result<()> {
    let file = Some("[llm]\nkv = \"dense\"\n");
    let (env, long) = ([("VIDI_LLM_KV", "q8")], ["--set", "llm.kv=q8"]);
    let profile = ["--profile", "4090-shared"];
    let both = ["--profile", "4090-shared", "--set", "llm.kv=q8"];
    let named = [("VIDI_PROFILE", "4090-shared")];
    let named_too = [("VIDI_PROFILE", "4090-shared"), ("VIDI_LLM_KV", "q8")];
    let (dense, q8, q4) = (KvPrecision::Dense, KvPrecision::Q8, KvPrecision::Q4);
    type Case<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)], &'a [&'a str], KvPrecision);
    let cases: [Case<'_>; 12] = [
        (None, &[], &[], dense),
        (None, &[], &profile, q4),
        (None, &named, &[], q4),
        (file, &[], &profile, dense),
        (file, &named, &[], dense),
        (None, &env, &profile, q8),
        (None, &named_too, &[], q8),
        (file, &env, &[], q8),
        (file, &env, &profile, q8),
        (file, &[], &long, q8),
        (None, &[("VIDI_LLM_KV", "q4")], &long, q8),
        (file, &[("VIDI_LLM_KV", "q4")], &both, q8),
    ];
    for (file, env, flags, expected) in cases {
        let output = print(file, env, flags)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{file:?} {env:?} {flags:?}: {said}");
        let printed = tempfile::NamedTempFile::new()?;
        std::fs::write(printed.path(), &output.stdout)?;
        let config = Config::load(Some(printed.path()), [], &[]).map_err(anyhow::Error::msg)?;
        ensure!(config.llm.kv == expected, "{file:?} {env:?} {flags:?}: {:?}", config.llm.kv);
        // What a layer does not name stays what the one below says.
        let profiled = flags.contains(&"--profile") || env.iter().any(|(name, _)| *name == "VIDI_PROFILE");
        ensure!((config.llm.weights == WeightFormat::Q4) == profiled, "{file:?} {env:?} {flags:?}");
    }
    Ok(())
}

#[test]
fn a_variable_that_names_no_section_is_refused_and_the_one_that_was_meant_is_named() -> anyhow::Result<()> {
    let output = print(None, &[("VIDI_BUSS_URL", "nats://nowhere")], &[])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2), "{}: {said}", output.status);
    ensure!(said.contains("VIDI_BUSS_URL") && said.contains("VIDI_BUS_URL?"), "{said}");
    Ok(())
}

/// Five processes under `vidi up`: what each of them holds itself to is what the supervisor merged, whatever the
/// environment and the file that both of them could read say of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_computes_with_what_was_merged_by_the_process_that_started_it() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("vidi.toml");
    let [in_file, in_env, in_flag] = [3_000_000_001_u64, 3_000_000_002, 3_000_000_003];
    std::fs::write(&file, format!("[budgets]\ndecode = {in_file}\nvision = {in_file}\naudio = {in_file}\n"))?;
    let setup = Setup {
        env: [
            ("VIDI_CONFIG", file.display().to_string()),
            ("VIDI_BUDGETS_VISION", in_env.to_string()),
            ("VIDI_BUDGETS_AUDIO", in_env.to_string()),
            ("VIDI_BUDGETS_FUSE", in_env.to_string()),
            ("VIDI_LLM_KV", "q8".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec(),
        set: vec![format!("budgets.audio={in_flag}"), format!("budgets.fuse={in_flag}"), "llm.kv=q4".to_owned()],
        ..Setup::default()
    };
    let rig = Rig::start(setup).await?;
    let mut budgets = BTreeMap::new();
    for stage in StageName::ALL {
        let status = client::status(&rig.bus, stage).await?;
        budgets.insert(stage, status.first().with_context(|| rig.log())?.budget_bytes);
    }
    let expected = [
        (StageName::Decode, in_file),
        (StageName::Vision, in_env),
        (StageName::Audio, in_flag),
        (StageName::Fuse, in_flag),
        (StageName::Llm, 0),
    ];
    ensure!(budgets == expected.into(), "{budgets:?}");

    let clip = rig.media().join("clip.mp4");
    video(&clip, 3)?;
    let request =
        JobRequest { max_new_tokens: 4, ..JobRequest::new(JobId::new("kv")?, clip.to_string_lossy(), "a dog") };
    let events = rig.answer(&request).await?;
    let Event::Result(result) = terminal(&events)? else { anyhow::bail!("{events:?}; {}", rig.log()) };
    ensure!(result.model.kv == "q4", "{:?}", result.model);
    Ok(())
}

/// The flag's checkpoint is the one that five processes serve, and variables that are empty are not there in any of them.
#[test]
fn a_flag_wins_over_a_variable_and_an_empty_variable_is_not_set_in_any_process() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let clip = dir.path().join("clip.mp4");
    video(&clip, 2)?;
    let empty = [
        "VIDI_BUS_URL",
        "VIDI_BUS_PASSWORD_FILE",
        "VIDI_CONFIG",
        "VIDI_PROFILE",
        "VIDI_SHARE",
        "VIDI_DECODE_MEDIA_ROOTS",
        "VIDI_LLM_KV",
    ];
    for (elsewhere, value) in
        [("VIDI_MODEL_DIR", "/nowhere"), ("VIDI_MODEL", "/nowhere"), ("VIDI_MODEL_WEIGHTS", "random:9b")]
    {
        let output = Command::new(vidi()?)
            .arg("ask")
            .arg(&clip)
            .args(["a dog", "--json", "--max-new-tokens", "2", "--model"])
            .arg(checkpoint("tied"))
            .envs(empty.map(|name| (name, "")))
            .env(elsewhere, value)
            .env("VIDI_STATE", dir.path())
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{elsewhere}: {}: {said}", output.status);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(answer["token_ids"].as_array().is_some_and(|ids| !ids.is_empty()), "{answer}");
    }
    let unset = print(None, &empty.map(|name| (name, "")), &[])?;
    ensure!(unset.status.success() && unset.stdout == print(None, &[], &[])?.stdout);
    Ok(())
}

/// Stages that are started again read the merged configuration again: a second supervisor must not have changed it.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_vidi_up_is_refused_before_it_touches_what_the_first_one_merged() -> anyhow::Result<()> {
    let rig = Rig::start(Setup::default()).await?;
    let state = rig.dir.path().join("state");
    let merged = file_of(&state, "stages-").context("no merged configuration")?;
    let before = (std::fs::read(&merged)?, std::fs::read(state.join("up.json"))?);
    let output = Command::new(vidi()?)
        .env("VIDI_STATE", &state)
        .args(["up", "--weights", "random:tiny", "--set", "llm.kv=q4", "--set"])
        .arg(format!("bus.url={}", rig.broker.url()))
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2) && said.contains("another `vidi up` runs"), "{}: {said}", output.status);
    let after = (std::fs::read(&merged)?, std::fs::read(state.join("up.json"))?);
    ensure!(after == before, "the first one's stages or clients would read something else");
    let private = |path: &Path| anyhow::Ok(std::fs::metadata(path)?.permissions().mode() & 0o777 == 0o600);
    ensure!(private(&merged)? && private(&state.join("up.json"))?, "others may read what may hold a password");
    Ok(())
}

/// A variable that a script, a test or a document names must not be refused where it is set.
#[test]
fn every_variable_that_the_tree_names_is_known() -> anyhow::Result<()> {
    let mut named = Vec::new();
    names_below(&root(), &mut named)?;
    let streams = StreamName::ALL.map(|stream| stream.on(&Subjects::new("vidi.v1")));
    // The bucket of files, with this prefix or another.
    named.retain(|name| !streams.contains(name) && name != "VIDI_FILES" && !name.starts_with("VIDI_FILES_"));
    ensure!(VARIABLES.iter().all(|known| named.iter().any(|name| name == known)), "{named:?}");
    for name in named {
        if MISSPELT.iter().any(|wrong| name.strip_prefix(PREFIX) == Some(wrong)) {
            continue;
        }
        let outcome = Config::load(None, [(name.clone(), "x".to_owned())], &[]);
        ensure!(!outcome.as_ref().is_err_and(|e| e.contains("names no section")), "{name}: {outcome:?}");
    }
    Ok(())
}

/// Words of source, scripts and documents that begin with [`PREFIX`].
fn names_below(dir: &Path, named: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if !file_name.starts_with('.') && file_name != "target" {
                names_below(&path, named)?;
            }
            continue;
        }
        if !["rs", "sh", "md", "toml", "py"].iter().any(|e| path.extension().is_some_and(|x| x == *e)) {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        named.extend(words.filter(|w| w.starts_with(PREFIX) && *w != PREFIX && !w.ends_with('_')).map(str::to_owned));
    }
    named.sort();
    named.dedup();
    Ok(())
}
