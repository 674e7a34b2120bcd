//! Benchmark of placements: the same questions with the stages on one device and on two, and jobs a second.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use config::Device;
use futures::StreamExt;
use protocol::error::StageName;
use runtime::process::ConfigArgs;
use serde::Serialize;

use super::bench::{Questions, gb};
use super::run::{Measured, Pipeline};
use super::table::{ALL, ROOMY};

/// Where the stages go, and how much is asked.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The device of the language model, and the second one.
    #[arg(long, value_delimiter = ',', default_values = ["cuda:0", "cuda:1"])]
    devices: Vec<Device>,
    /// Jobs to answer for jobs a second, each about a video of its own.
    #[arg(long, default_value_t = 12)]
    jobs: usize,
    /// Duration of their videos in seconds.
    #[arg(long, default_value_t = 60)]
    job_seconds: u64,
    /// Jobs at a time.
    #[arg(long, default_value_t = 4)]
    concurrent: usize,
    /// Seconds after which no further placement is begun, so that what was measured is printed.
    #[arg(long, default_value_t = 420)]
    within_s: u64,
}

/// Figures of one placement.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// What is where, in words.
    pub name: String,
    /// `--place` of `vidi up`.
    pub place: String,
    /// Seconds until all processes were ready.
    pub ready_s: f64,
    /// Every question, one job at a time.
    pub questions: Vec<Measured>,
    /// Jobs a second; none where one of the jobs failed.
    pub jobs_per_s: Option<f64>,
    /// Bytes that the processes on each device held at most, added up.
    pub peak_bytes: BTreeMap<String, u64>,
}

/// Placements to compare, in words and as `--place` has them, each with the number of its processes.
fn placements(first: Device, second: Device) -> Vec<(&'static str, String, usize)> {
    let both = format!("{first},{second}");
    let of = |vision: &str, others: &str, llm: &str| format!("vision={vision},audio={others},fuse={others},llm={llm}");
    let [one, other] = [first, second].map(|device| device.to_string());
    let named = [
        ("one GPU", of(&one, &one, &one)),
        ("encoders on the second", of(&other, &other, &one)),
        ("stage-vision on both", of(&both, &other, &one)),
        ("every stage on both", of(&both, &both, &both)),
    ];
    // Devices, beside a decoder.
    named.map(|(name, place)| (name, place.clone(), 1 + place.split(',').count())).into()
}

/// Measures every placement, with the settings of the command line added, and prints them side by side.
///
/// # Errors
/// A pipeline that does not start.
pub async fn run(
    arguments: &Arguments,
    config: &ConfigArgs,
    model: Option<&Path>,
    questions: &Questions,
) -> anyhow::Result<Vec<Column>> {
    ensure!(model.is_some() || config.weights.is_some(), "no model: give --model DIR or --weights random");
    let [first, second] = arguments.devices.as_slice() else { anyhow::bail!("--devices are two, e.g. cuda:0,cuda:1") };
    ensure!(arguments.jobs > 0 && arguments.concurrent > 0, "--jobs and --concurrent are at least 1");
    // Every question goes through all stages, unless the command line says otherwise.
    let own = ALL.iter().chain(&ROOMY).chain(&["llm.keep_video=false"]).map(ToString::to_string);
    let mut set: Vec<String> = own.chain(config.set.clone()).collect();
    set.extend(config.weights.map(|weights| format!("model.weights={weights}")));
    let (started, within) = (Instant::now(), Duration::from_secs(arguments.within_s));
    let mut columns = Vec::new();
    for (name, place, processes) in placements(*first, *second) {
        if started.elapsed() > within {
            println!("{name}: left out, {} s have passed", started.elapsed().as_secs());
            continue;
        }
        let before = Instant::now();
        let options = ["--place".to_owned(), place.clone()];
        let pipeline = Pipeline::start(model, &set, &options, processes).await.with_context(|| name)?;
        let ready_s = before.elapsed().as_secs_f64();
        println!("{name} ({place}): ready in {ready_s:.1} s");
        let column = measure(&pipeline, arguments, questions).await.with_context(|| name)?;
        columns.push(Column { name: name.to_owned(), place, ready_s, ..column });
        println!("{}", side_by_side(&columns, questions, arguments));
    }
    Ok(columns)
}

async fn measure(pipeline: &Pipeline, arguments: &Arguments, questions: &Questions) -> anyhow::Result<Column> {
    let mut asked = Vec::new();
    for (i, &seconds) in questions.seconds.iter().enumerate() {
        for round in 0..questions.rounds.max(1) {
            let job = format!("placement-{i}-{seconds}-{round}");
            let measured = pipeline.ask(&job, seconds, questions.new_tokens).await?;
            let error = measured.error.as_deref().unwrap_or_default();
            println!("{seconds} s: {:.3} s, {:.2} ms a token {error}", measured.first_token_s, measured.ms_per_token);
            asked.push(measured);
        }
    }
    let started = Instant::now();
    let jobs = futures::stream::iter(0..arguments.jobs).map(|i| async move {
        let video = format!("synthetic:{}:{i}", arguments.job_seconds);
        pipeline.ask_about(&format!("rate-{i}"), &video, arguments.job_seconds, questions.new_tokens).await
    });
    let answered: Vec<_> = jobs.buffer_unordered(arguments.concurrent).collect().await;
    let seconds = started.elapsed().as_secs_f64();
    let answered = answered.into_iter().collect::<anyhow::Result<Vec<Measured>>>()?;
    let failed = answered.iter().find_map(|measured| measured.error.as_deref());
    if let Some(error) = failed {
        println!("a job failed, no jobs a second: {error}");
    }
    let mut peak_bytes = BTreeMap::new();
    for status in pipeline.memory().await?.into_iter().filter(|status| status.stage != StageName::Decode) {
        *peak_bytes.entry(status.device).or_default() += status.peak_bytes;
    }
    Ok(Column {
        name: String::new(),
        place: String::new(),
        ready_s: 0.0,
        questions: asked,
        jobs_per_s: failed.is_none().then(|| arguments.jobs as f64 / seconds),
        peak_bytes,
    })
}

/// Table of first tokens, the questions after the first one of each duration, of jobs a second and of memory.
fn side_by_side(columns: &[Column], questions: &Questions, arguments: &Arguments) -> String {
    let row = |head: String, of: &dyn Fn(&Column) -> String| {
        format!("| {head} | {} |", columns.iter().map(of).collect::<Vec<_>>().join(" | "))
    };
    let mut lines = vec![row("".to_owned(), &|c| c.name.clone()), row("---".to_owned(), &|_| "---".to_owned())];
    for &seconds in &questions.seconds {
        lines.push(row(format!("first token of {seconds} s, s"), &|c| {
            range(&counted(c, seconds), |m| m.first_token_s, 3)
        }));
        lines.push(row(format!("a token of {seconds} s, ms"), &|c| range(&counted(c, seconds), |m| m.ms_per_token, 1)));
    }
    let Arguments { jobs, job_seconds, concurrent, .. } = arguments;
    lines.push(row(format!("jobs/s, {jobs} of {job_seconds} s, {concurrent} at a time"), &|c| {
        c.jobs_per_s.map_or("failed".to_owned(), |rate| format!("{rate:.2}"))
    }));
    lines.push(row("peak GB".to_owned(), &|c| {
        c.peak_bytes.iter().map(|(device, bytes)| format!("{device} {:.1}", gb(*bytes))).collect::<Vec<_>>().join(", ")
    }));
    lines.join("\n")
}

/// Questions of a duration that count: all but the first, where there are several.
fn counted(column: &Column, seconds: u64) -> Vec<&Measured> {
    let all: Vec<&Measured> = column.questions.iter().filter(|m| m.seconds == seconds).collect();
    all[usize::from(all.len() > 1)..].to_vec()
}

/// Smallest and largest of a figure, or the error that there is in its place.
fn range(measured: &[&Measured], of: fn(&Measured) -> f64, digits: usize) -> String {
    if let Some(error) = measured.iter().find_map(|m| m.error.as_deref()) {
        return error.to_owned();
    }
    let values: Vec<String> = {
        let mut values: Vec<f64> = measured.iter().map(|m| of(m)).collect();
        values.sort_by(f64::total_cmp);
        values.iter().map(|value| format!("{value:.digits$}")).collect()
    };
    match values.as_slice() {
        [] => String::new(),
        [first, .., last] if first != last => format!("{first} to {last}"),
        [first, ..] => first.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_placement_is_one_of_vidi_up_with_as_many_processes() {
        let counts = placements(Device::Cuda(0), Device::Cuda(1)).into_iter().map(|(name, place, processes)| {
            let given: Vec<String> = place.split(',').map(str::to_owned).collect();
            let set = deploy::up::replicas::placement(&given).unwrap();
            let config = config::Config::load(None, [], &set).unwrap();
            let replicas = deploy::up::replicas::replicas(&[], &config).unwrap();
            assert_eq!(replicas.iter().map(|(_, count)| count).sum::<usize>(), processes, "{name}");
            deploy::up::replicas::devices(&config, &replicas).len()
        });
        assert_eq!(counts.collect::<Vec<_>>(), [1, 2, 2, 2]);
    }

    #[test]
    fn the_first_question_of_a_duration_warms_up_and_an_error_stands_in_its_place() {
        let measured = |seconds, first_token_s, error: Option<&str>| Measured {
            seconds,
            tokens: 2060,
            first_token_s,
            total_s: 3.0,
            ms_per_token: 6.25,
            peak_bytes: 0,
            cached: protocol::event::Cached::No,
            token_ids: Vec::new(),
            busy_s: Vec::new(),
            error: error.map(str::to_owned),
        };
        let column = |name: &str, jobs_per_s, questions| Column {
            name: name.to_owned(),
            place: String::new(),
            ready_s: 1.0,
            questions,
            jobs_per_s,
            peak_bytes: [("cuda:0".to_owned(), 24_100_000_000), ("cuda:1".to_owned(), 3_000_000_000)].into(),
        };
        let long = || vec![measured(300, 2.0, None), measured(300, 1.5, None), measured(300, 1.25, None)];
        let columns = [
            column("one GPU", Some(0.5), [vec![measured(10, 0.25, None)], long()].concat()),
            column("two", None, vec![measured(300, f64::NAN, Some("llm: needs 10.28 GiB"))]),
        ];
        let questions =
            Questions { seconds: vec![10, 300], rounds: 3, new_tokens: 64, soak: 0, unload: false, at_once: 0 };
        let devices = vec![Device::Cuda(0), Device::Cuda(1)];
        let arguments = Arguments { devices, jobs: 12, job_seconds: 60, concurrent: 4, within_s: 1 };
        let table = side_by_side(&columns, &questions, &arguments);
        for line in [
            "|  | one GPU | two |",
            "| first token of 10 s, s | 0.250 |  |",
            "| first token of 300 s, s | 1.250 to 1.500 | llm: needs 10.28 GiB |",
            "| a token of 300 s, ms | 6.2 | llm: needs 10.28 GiB |",
            "| jobs/s, 12 of 60 s, 4 at a time | 0.50 | failed |",
            "| peak GB | cuda:0 24.1, cuda:1 3.0 | cuda:0 24.1, cuda:1 3.0 |",
        ] {
            assert!(table.lines().any(|l| l == line), "no {line} in {table}");
        }
    }
}
