//! Tests of stages on several devices: what is where, what each process reads, what a GPU's language model waits for.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use config::{COMPUTING, Config};
use deploy::client;
use deploy::model::plan::MemoryPlan;
use deploy::up::{budgets, replicas};
use model::config_json::ModelConfig;
use protocol::control::{LoadReply, Verb};
use protocol::error::StageName;
use protocol::event::{Event, Mode};
use protocol::message::{JobId, JobRequest};
use protocol::plan::{FRAME_BYTES, SAMPLE_RATE};
use runtime::process::Exit;
use runtime::run::service::Status;
use runtime::subject::StreamName;
use tests::delivery::Delivery;
use tests::harness::{Rig, Setup, checkpoint, signal, terminal, vidi};
use tests::media::video;
use tests::own::Place;
use tests::pipeline::{Pipeline, Video};

/// Longest time until processes have ended or started.
const SOON: Duration = Duration::from_secs(60);

fn set(all: &[String]) -> anyhow::Result<Config> {
    Config::load(None, [], all).map_err(anyhow::Error::msg)
}

async fn vision_until(rig: &Rig, done: impl Fn(&[Status]) -> bool) -> anyhow::Result<Vec<Status>> {
    let since = Instant::now();
    loop {
        let seen = client::status(&rig.bus, StageName::Vision).await?;
        if done(&seen) {
            return Ok(seen);
        }
        ensure!(since.elapsed() < SOON, "{seen:?}; {}", rig.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn budgets_of(seen: &[Status]) -> Vec<u64> {
    let mut budgets: Vec<u64> = seen.iter().map(|status| status.budget_bytes).collect();
    budgets.sort_unstable();
    budgets
}

fn request(rig: &Rig, job: &str) -> anyhow::Result<JobRequest> {
    let clip = rig.media().join("clip.mp4");
    if !clip.is_file() {
        video(&clip, 8)?;
    }
    Ok(JobRequest { max_new_tokens: 12, ..JobRequest::new(JobId::new(job)?, clip.to_string_lossy(), "a dog") })
}

async fn answered(rig: &Rig, job: &str) -> anyhow::Result<(Vec<u32>, Mode)> {
    let request = request(rig, job)?;
    let events = rig.answer(&request).await?;
    let mode = events.iter().find_map(|e| if let Event::Planned { mode, .. } = &e.event { Some(*mode) } else { None });
    match terminal(&events)? {
        Event::Result(result) => Ok((result.token_ids.clone(), mode.context("no plan")?)),
        other => anyhow::bail!("{other:?}; {}", rig.log()),
    }
}

/// Asks the supervisor for the processes of a stage on a device.
async fn told(rig: &Rig, verb: Verb, body: &str) -> anyhow::Result<LoadReply> {
    let reply =
        rig.operator().await?.client().request(format!("vidi.v1.control.{verb}"), body.to_owned().into()).await?;
    Ok(serde_json::from_slice(&reply.payload)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn placed_replicas_start_each_with_its_budget_and_come_back_as_they_were() -> anyhow::Result<()> {
    let [first, second] = [3_000_000_001_u64, 3_000_000_002];
    let setup = Setup {
        place: "vision=cpu,cpu".to_owned(),
        set: vec![format!("placement.budgets.vision=[{first}, {second}]")],
        ..Setup::default()
    };
    let rig = Rig::start(setup).await?;
    let two = vision_until(&rig, |seen| seen.len() == 2).await?;
    ensure!(budgets_of(&two) == [first, second] && two.iter().all(|status| status.device == "cpu"), "{two:?}");
    let (expected, _) = answered(&rig, "before").await?;

    let before = rig.pids(StageName::Vision);
    for killed in before.clone() {
        let kept = rig.pids(StageName::Vision).into_iter().filter(|pid| *pid != killed).collect::<Vec<_>>();
        signal(killed, "KILL")?;
        let since = Instant::now();
        loop {
            let now = rig.pids(StageName::Vision);
            if now.len() == 2 && !now.contains(&killed) && kept.iter().all(|pid| now.contains(pid)) {
                break;
            }
            ensure!(since.elapsed() < SOON, "{now:?} after {before:?}; {}", rig.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let seen = vision_until(&rig, |seen| seen.len() == 2 && budgets_of(seen) == [first, second]).await?;
        ensure!(seen.iter().all(|status| status.device == "cpu"), "{seen:?}");
    }
    ensure!(answered(&rig, "after").await?.0 == expected, "another answer");

    let said = rig.run(&["status"])?;
    let table = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(table.lines().next().is_some_and(|head| head.contains("device")), "{table}");
    ensure!(table.lines().filter(|line| line.split_whitespace().nth(1) == Some("cpu")).count() == 6, "{table}");

    // Where a stage has no process, there is none to end.
    let elsewhere = told(&rig, Verb::Unload, r#"{"stage": "vision", "device": "cuda:1"}"#).await?;
    ensure!(elsewhere.processes == 0 && elsewhere.error.is_none(), "{elsewhere:?}");
    ensure!(rig.pids(StageName::Vision).len() == 2);
    let unknown = told(&rig, Verb::Unload, r#"{"stage": "vision", "device": "gpu"}"#).await?;
    ensure!(unknown.error.as_deref().is_some_and(|error| error.contains("cuda:N")), "{unknown:?}");
    let here = told(&rig, Verb::Unload, r#"{"stage": "vision", "device": "cpu"}"#).await?;
    ensure!(here.processes == 2 && rig.pids(StageName::Vision).is_empty(), "{here:?}");
    ensure!(told(&rig, Verb::Load, r#"{"stage": "vision", "device": "cpu"}"#).await?.processes == 2);
    vision_until(&rig, |seen| seen.len() == 2 && budgets_of(seen) == [first, second]).await?;
    Ok(())
}

/// Settings of the golden checkpoint with so many bytes for all stages on the host's processors.
fn capped(bytes: u64) -> Vec<String> {
    let model = format!("model.dir={}", checkpoint("tied").display());
    vec![model, format!("placement.card_bytes.cpu={bytes}"), "llm.chunk_rows=256".to_owned()]
}

/// What the stages take with further settings where all are on the host's processors, stage-vision twice: not a byte is left for keys and
/// values.
fn tight(further: &[String]) -> anyhow::Result<u64> {
    let config = set(&[&capped(0), further].concat())?;
    let plan = MemoryPlan::new(&config, &ModelConfig::configured(&config.model)?, &[(StageName::Vision, 2)])?;
    Ok(plan.bytes())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_does_not_fit_beside_the_encoders_has_them_leave_its_device_and_come_back() -> anyhow::Result<()> {
    let setup = Setup { place: "vision=cpu,cpu".to_owned(), set: capped(tight(&[])?), ..Setup::default() };
    let rig = Rig::start(setup).await?;
    vision_until(&rig, |seen| seen.len() == 2).await?;
    let pids = |stages: &[StageName]| stages.iter().flat_map(|&stage| rig.pids(stage)).collect::<Vec<_>>();
    let (encoders, others) = (&COMPUTING[..3], [StageName::Decode, StageName::Llm]);
    let (before, stay) = (pids(encoders), pids(&others));
    let (tokens, mode) = answered(&rig, "phases").await?;
    ensure!(mode == Mode::Phases, "{mode:?}");
    let since = Instant::now();
    while pids(encoders).len() < before.len() {
        ensure!(since.elapsed() < SOON, "{:?} are back; {}", pids(encoders), rig.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(pids(encoders).iter().all(|pid| !before.contains(pid)), "one stayed: {before:?}; {}", rig.log());
    ensure!(pids(&others) == stay, "{stay:?} had no reason to leave; {}", rig.log());

    let roomy = Rig::start(Setup { set: vec!["llm.chunk_rows=256".to_owned()], ..Setup::default() }).await?;
    ensure!(answered(&roomy, "streaming").await? == (tokens, Mode::Streaming), "another answer");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_tokens_the_broker_lost_before_it_had_the_device_begins_anew() -> anyhow::Result<()> {
    // Every frame is a message, and patience has no end.
    let further = ["bus.data_storage=memory", "bus.worker_patience_s=600", "decode.batch_frames=1"].map(str::to_owned);
    let set = [&capped(tight(&further)?), further.as_slice()].concat();
    let mut rig = Rig::start(Setup { place: "vision=cpu,cpu".to_owned(), set, ..Setup::default() }).await?;
    vision_until(&rig, |seen| seen.len() == 2).await?;
    let (tokens, mode) = answered(&rig, "undisturbed").await?;
    ensure!(mode == Mode::Phases, "{mode:?}");
    // An owner that had taken no token yet asks for all of them, and needs no new beginning.
    for n in 0..5 {
        lose_tokens(&mut rig, &format!("lost-{n}"), &tokens).await?;
        if rig.log().contains("it begins anew") {
            return Ok(());
        }
    }
    anyhow::bail!("no job began anew; {}", rig.log())
}

/// A job whose broker loses its first tokens, and keeps none of the messages that more are made of.
async fn lose_tokens(rig: &mut Rig, job: &str, tokens: &[u32]) -> anyhow::Result<()> {
    let since = Instant::now();
    while client::status(&rig.bus, StageName::Fuse).await?.is_empty() {
        ensure!(since.elapsed() < SOON, "stage-fuse is not back; {}", rig.log());
    }
    let fuse = *rig.pids(StageName::Fuse).first().context("no stage-fuse")?;
    signal(fuse, "STOP")?;
    let request = request(rig, job)?;
    client::submit(&rig.bus, &request).await?;
    // Some tokens come, and not all.
    let subject = rig.bus.subjects().tokens(&request.job);
    let since = Instant::now();
    while rig.bus.last_on(StreamName::Tokens, &subject).await.is_none() {
        ensure!(since.elapsed() < SOON, "no tokens; {}", rig.log());
        signal(fuse, "CONT")?;
        tokio::time::sleep(Duration::from_millis(2)).await;
        signal(fuse, "STOP")?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    rig.restart_broker().await?;
    signal(fuse, "CONT")?;
    let events = rig.events(&request.job).await?;
    let Event::Result(result) = terminal(&events)? else { anyhow::bail!("{events:?}; {}", rig.log()) };
    ensure!(result.token_ids == tokens, "another answer");
    Ok(())
}

/// What stage-llm is told by `vidi up`, and what it makes of it: the same bytes on its own device, the encoders beside it or on
/// a GPU that this machine need not have.
#[test]
fn the_language_model_counts_only_what_shares_its_device() -> anyhow::Result<()> {
    let cap = tight(&[])?;
    let mut answers = Vec::new();
    for (place, expected) in [
        ("vision=cpu,cpu", Mode::Phases),
        ("vision=cuda:0,cuda:1,audio=cuda:1,fuse=cuda:1", Mode::Streaming),
        ("vision=cuda:0,cpu,audio=cuda:1,fuse=cuda:1", Mode::Phases),
    ] {
        let mut all = capped(if expected == Mode::Phases && place.contains("cuda") { beside_one()? } else { cap });
        let given: Vec<String> = place.split(',').map(str::to_owned).collect();
        all.extend(replicas::placement(&given).map_err(anyhow::Error::msg)?);
        let mut config = set(&all)?;
        let counts = replicas::replicas(&[], &config).map_err(anyhow::Error::msg)?;
        budgets::divide(&mut config, &counts).map_err(|fatal| anyhow::anyhow!("{}", fatal.1))?;
        let own = config.of_replica(StageName::Llm, 0);
        ensure!(own.compute.device == "cpu", "{}", own.compute.device);
        let mut pipeline = Pipeline::open(&Config { budgets: llm_alone(&own), ..own })?;
        let (frames, sound) = (vec![60u8; 8 * FRAME_BYTES], vec![1000i16; 8 * SAMPLE_RATE as usize]);
        let watched = Video::new(Some(frames.as_slice()), Some(sound.as_slice()));
        let request = JobRequest { max_new_tokens: 12, ..JobRequest::new(JobId::new("place")?, "in-process", "a dog") };
        let answered = pipeline.answer(&watched, &request, Delivery::in_order());
        let answered = answered.map_err(|stop| anyhow::anyhow!("{place}: {stop:?}"))?;
        let mode =
            answered.events.iter().find_map(|e| if let Event::Planned { mode, .. } = e { Some(*mode) } else { None });
        ensure!(mode == Some(expected), "{place}: {mode:?}");
        answers.push(answered.result.token_ids);
    }
    ensure!(!answers[0].is_empty() && answers.iter().all(|tokens| *tokens == answers[0]), "{answers:?}");
    Ok(())
}

/// The language model's budget alone: what the other stages may hold is not theirs in its configuration.
fn llm_alone(own: &Config) -> std::collections::BTreeMap<StageName, u64> {
    own.budget(StageName::Llm).map(|bytes| (StageName::Llm, bytes)).into_iter().collect()
}

/// What the language model and one stage-vision take on the host's processors.
fn beside_one() -> anyhow::Result<u64> {
    let mut config = set(&capped(0))?;
    config.placement.audio = vec![config::Device::Cuda(1)];
    config.placement.fuse = config.placement.audio.clone();
    let plan = MemoryPlan::new(&config, &ModelConfig::configured(&config.model)?, &[])?;
    Ok(plan.devices.iter().find(|on| on.device == config::Device::Cpu).context("no CPU")?.bytes())
}

fn run(dir: &Path, args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Output> {
    let mut command = Command::new(vidi()?);
    command.env("VIDI_STATE", dir.join("state")).envs(env.iter().copied()).args(args).stdin(Stdio::null());
    Ok(command.output()?)
}

#[test]
fn a_file_is_below_the_environment_below_settings_below_place() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("vidi.toml");
    std::fs::write(
        &path,
        "[placement]\nvision = [\"cuda:9\"]\naudio = \"cuda:8\"\n[placement.card_bytes]\n\"cuda:7\" = 1\n\"cuda:8\" = 90000000000\n",
    )?;
    let file = path.to_string_lossy().into_owned();
    let (file, plan) = (["--config", &file], ["plan", "--video-seconds", "10", "--json"]);
    let settings = ["--set", "placement.vision=cuda:7", "--set", "placement.card_bytes.cuda:7=80000000000"];
    let env = [("VIDI_PLACEMENT_VISION", "cuda:5,cuda:6")];
    let place = ["--place", "vision=cuda:3,cuda:4"];
    let devices = |args: &[&[&str]], env: &[(&str, &str)]| -> anyhow::Result<(serde_json::Value, Vec<String>)> {
        let output = run(dir.path(), &args.concat(), env)?;
        let object: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let on = |(name, device): (&String, &serde_json::Value)| device["stages"].get("vision").map(|_| name.clone());
        let vision = object["devices"].as_object().context("no devices")?.iter().filter_map(on).collect();
        Ok((object, vision))
    };
    ensure!(devices(&[&file, &plan], &[])?.1 == ["cuda:9"]);
    ensure!(devices(&[&file, &plan], &env)?.1 == ["cuda:5", "cuda:6"]);
    let (object, vision) = devices(&[&file, &settings, &plan], &env)?;
    ensure!(vision == ["cuda:7"], "{vision:?}");
    // Of the caps each device has its own: one that a layer does not name stays what the one below says.
    ensure!(object["devices"]["cuda:7"]["card_bytes"] == 80_000_000_000_u64, "{object}");
    ensure!(object["devices"]["cuda:8"]["card_bytes"] == 90_000_000_000_u64, "{object}");
    let (object, vision) = devices(&[&file, &settings, &plan, &place], &env)?;
    ensure!(vision == ["cuda:3", "cuda:4"], "{vision:?}");
    ensure!(object["devices"]["cuda:8"]["stages"]["audio"]["processes"] == 1, "{object}");
    ensure!(object["videos"][0]["fit"]["device"] == "cpu", "{object}");
    Ok(())
}

#[test]
fn vidi_plan_shows_each_gpu_and_that_an_hour_streams_there() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let plan = ["plan", "--profile", "4090-shared", "--video-seconds", "3600"];
    let away = ["--place", "vision=cuda:1,audio=cuda:1,fuse=cuda:1"];
    let said = |args: &[&[&str]]| -> anyhow::Result<String> {
        let output = run(dir.path(), &args.concat(), &[])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    };
    let one = said(&[&plan])?;
    // Of 1,024 rows, for which memory is kept whatever the job, and of 8,192 at most.
    let of_rows = |said: &str, mode: &str| {
        let end = said.trim_end().rsplit_once(&format!(": {mode}, passes of ")).map(|(_, end)| end.to_owned());
        let rows = end.and_then(|end| end.strip_suffix(" rows")?.parse::<u64>().ok());
        rows.with_context(|| said.to_owned())
    };
    ensure!(one.starts_with("stage ") && one.contains("3600 s: "), "{one}");
    let in_phases = of_rows(&one, "in phases")?;
    ensure!(in_phases > 1024 && in_phases < 8192, "{one}");
    let two = said(&[&plan, &away])?;
    ensure!(two.starts_with("cuda:0\nstage ") && two.contains("\n\ncuda:1\nstage "), "{two}");
    ensure!(two.matches("cap (compute.card_bytes): 18.25 GiB; left: ").count() == 2, "{two}");
    ensure!(two.contains("3600 s, on cuda:0: ") && of_rows(&two, "streaming")? == in_phases, "{two}");
    Ok(())
}

#[test]
fn what_contradicts_itself_is_refused_by_its_name_before_anything_starts() -> anyhow::Result<()> {
    let place = Place::new(None)?;
    for (args, words) in [
        (
            &["up", "--place", "vision=cuda:0,cuda:1", "--replicas", "vision=1"][..],
            &["--replicas vision=1", "cuda:0, cuda:1"][..],
        ),
        (&["up", "--place", "vision=cuda:0,llm=cuda:1", "--one-process"], &["--one-process", "cuda:0 and cuda:1"]),
        (&["up", "--place", "vison=cuda:0"], &["vison", "vision, audio, fuse, llm"]),
        (&["up", "--place", "vision=gpu:0"], &["gpu:0", "cpu, cuda and cuda:N"]),
        (
            &["up", "--set", "placement.budgets.vision=[1, 2]"],
            &["placement.budgets.vision", "2 numbers", "1 processes"],
        ),
        (&["stage", "vision", "--set", "placement.vision=cuda:0,cuda:1"], &["placement.vision", "cuda:0, cuda:1"]),
        (&["plan", "--place", "decode=cuda:0"], &["stage-decode", "vision, audio, fuse, llm"]),
    ] {
        let output = place.command(args)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(Exit::Usage as i32), "{args:?}: {}: {said}", output.status);
        ensure!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
    }
    let few = ["up", "--place", "vision=cpu,cpu", "--set", "placement.card_bytes.cpu=1000"];
    let output = place.command(&few)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(Exit::DoesNotFit as i32), "{}: {said}", output.status);
    ensure!(said.contains("do not fit cpu: placement.card_bytes.cpu is 1.0 KiB"), "{said}");
    Ok(())
}

/// The command that measures placements on a machine with two GPUs, here with two names of the same processors.
#[test]
fn gpu_bench_compares_placements() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let figures = dir.path().join("figures.json");
    let output = Command::new(env!("CARGO_BIN_EXE_gpu_bench"))
        .args(["--weights", "random:tiny", "--seconds", "4", "--rounds", "2", "--new-tokens", "4", "--json"])
        .arg(&figures)
        .args(["--set", "compute.device=cpu", "--set", "compute.dtype=f32"])
        .args(["placement", "--devices", "cpu,cpu", "--jobs", "3", "--job-seconds", "3", "--concurrent", "2"])
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}{said}", String::from_utf8_lossy(&output.stderr));
    let columns: serde_json::Value = serde_json::from_slice(&std::fs::read(&figures)?)?;
    let columns = columns.as_array().context("no columns")?;
    ensure!(columns.len() == 4 && said.contains("| first token of 4 s, s | "), "{said}");
    for column in columns {
        let asked = column["questions"].as_array().context("no questions")?;
        ensure!(
            asked.len() == 2 && asked.iter().all(|m| m["error"].is_null() && m["tokens"] == asked[0]["tokens"]),
            "{column}"
        );
        ensure!(column["jobs_per_s"].as_f64().is_some_and(|rate| rate > 0.0), "{column}");
        ensure!(asked[0]["token_ids"] == columns[0]["questions"][0]["token_ids"], "another answer: {column}");
    }
    Ok(())
}
