//! Jobs whose true answers are known.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use demo_video::truth::Truth;
use deploy::client;
use protocol::message::{JobId, JobRequest};
use runtime::bus::Bus;
use tokio::sync::OnceCell;

use super::{Scale, look};
use crate::harness::{Rig, Setup};
use crate::media::ffmpeg;

/// Settings of every rig of the suite: quick redelivery, and a patience that ends within a case. Its weights are random
/// ones, whose answers go on for as long as a case asks for.
pub fn setup(scale: &Scale) -> Setup {
    let set = ["bus.ack_wait_s=1", "bus.worker_patience_s=20"].map(str::to_owned).to_vec();
    Setup { broker: scale.broker.clone(), set, ..Setup::default() }
}

/// Set-up of the cases that ask for answers: with the demo model, whose answers are true ones.
pub fn true_setup(scale: &Scale) -> Setup {
    Setup { model: Some("demo".into()), ..setup(scale) }
}

/// Questions with known truths, and their answers in an undisturbed run.
pub struct Load {
    kinds: Vec<JobRequest>,
    answers: Vec<Vec<u32>>,
}

/// A question of the mixed load.
struct Kind {
    /// Seed of the scene.
    seed: u64,
    /// The file, and ffmpeg's options that make it of the scene's video; none for that video itself.
    file: (&'static str, Option<&'static str>),
    query: &'static str,
}

/// Length of the mixed scenes, seconds, and the part of them that is asked about: it costs two thirds of a whole one.
const MIXED_S: u32 = 8;
const MIXED_SPAN: [f64; 2] = [0.0, 4.0];
/// Times of what is seen, of a sound that is heard twice, of what is not there, and a word; files with and without sound, and in
/// another codec.
const MIXED: [Kind; 6] = [
    Kind { seed: 5, file: ("5.mp4", None), query: "a triangle" },
    Kind { seed: 2, file: ("2.mp4", None), query: "What colour is the circle?" },
    Kind { seed: 5, file: ("5.webm", Some("-an -c:v libvpx -deadline realtime -b:v 2M")), query: "something green" },
    Kind { seed: 1, file: ("1.mp4", None), query: "a beep" },
    Kind { seed: 1, file: ("1-silent.mp4", Some("-an -c:v copy")), query: "a white circle" },
    Kind { seed: 2, file: ("2.mp4", None), query: "What shape is the yellow object?" },
];
/// A scene of any length with a question whose answer is true at 20 to 60 s.
const LONG: (u64, &str) = (3, "a red triangle");

/// The mixed load, asked once by the first case of a process that needs it: files with their bytes, and the load with paths
/// relative to a media root.
static KNOWN: OnceCell<(BTreeMap<&'static str, Vec<u8>>, Load)> = OnceCell::const_new();

impl Load {
    /// The mixed load, its files in a rig's media root. Without faults; a rig of [`true_setup`].
    ///
    /// # Errors
    /// ffmpeg's, that of a job, or an answer that is not true.
    pub async fn new(rig: &Rig) -> anyhow::Result<Self> {
        let (files, known) = KNOWN.get_or_try_init(|| Self::ask_all(rig)).await?;
        for (name, bytes) in files {
            std::fs::write(rig.media().join(name), bytes)?;
        }
        let in_rig = |kind: &JobRequest| JobRequest {
            video: rig.media().join(&kind.video).to_string_lossy().into_owned(),
            ..kind.clone()
        };
        Ok(Load { kinds: known.kinds.iter().map(in_rig).collect(), answers: known.answers.clone() })
    }

    /// Makes the files of the mixed load and asks every question once.
    async fn ask_all(rig: &Rig) -> anyhow::Result<(BTreeMap<&'static str, Vec<u8>>, Self)> {
        let (mut files, mut load) = (BTreeMap::new(), Load { kinds: Vec::new(), answers: Vec::new() });
        for Kind { seed, file: (name, options), query } in &MIXED {
            let (video, truth) = rig.demo_video(*seed, MIXED_S)?;
            let path = rig.media().join(name);
            if let Some(options) = options {
                ffmpeg(&format!("-i {} {options}", video.display()), &path)?;
            }
            load.ask(rig, &path, &truth, query, Some(MIXED_SPAN)).await?;
            files.insert(*name, std::fs::read(&path)?);
            load.kinds.last_mut().context("just asked")?.video = (*name).to_owned();
        }
        Ok((files, load))
    }

    /// One question about one long video, asked once without faults; a rig of [`true_setup`].
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub async fn long(rig: &Rig, seconds: u32) -> anyhow::Result<Self> {
        let mut load = Load { kinds: Vec::new(), answers: Vec::new() };
        let (seed, query) = LONG;
        let (video, truth) = rig.demo_video(seed, seconds)?;
        load.ask(rig, &video, &truth, query, None).await?;
        Ok(load)
    }

    /// Asks a question, about a part of the video or all of it, and adds it, with its answer.
    async fn ask(
        &mut self,
        rig: &Rig,
        video: &Path,
        truth: &Truth,
        query: &str,
        span: Option<[f64; 2]>,
    ) -> anyhow::Result<()> {
        let question = truth.questions.iter().find(|q| q.query == query).context("no such question")?;
        // Of its own: the same id is the same job.
        let stem = video.file_stem().context("no file")?.to_string_lossy();
        let job = JobId::new(format!("undisturbed-{stem}-{}", self.kinds.len()))?;
        let request = JobRequest {
            task: question.task.clone(),
            span,
            max_new_tokens: 24,
            ..JobRequest::new(job, video.to_string_lossy(), query)
        };
        let events = rig.answer(&request).await?;
        let told = look::result(&events).with_context(|| rig.log())?;
        let truth = span.map_or(question.answer.clone(), |span| question.answer.within(span));
        let verdict = truth.judge(told);
        ensure!(verdict.is_true(), "{query:?}: {:?}, and the truth is {truth} ({verdict})", told.text);
        self.answers.push(told.token_ids.clone());
        self.kinds.push(request);
        Ok(())
    }

    /// Asks every question once more, so that every process has done all its kinds of work before what it takes is measured.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub async fn warm_up(&self, rig: &Rig) -> anyhow::Result<()> {
        let requests = self.submit(&rig.bus, "warm-up", self.kinds.len()).await?;
        self.check(rig, &requests).await
    }

    /// A request of a kind, with its own job id.
    pub fn request(&self, name: &str, kind: usize) -> JobRequest {
        let job = JobId::new(format!("{name}-k{}", kind % self.kinds.len())).expect("the name makes a valid job id");
        JobRequest { job, ..self.kinds[kind % self.kinds.len()].clone() }
    }

    /// Submits `n` jobs of mixed kinds.
    ///
    /// # Errors
    /// If the broker does not take them.
    pub async fn submit(&self, bus: &Bus, name: &str, n: usize) -> anyhow::Result<Vec<JobRequest>> {
        let requests: Vec<JobRequest> = (0..n).map(|i| self.request(&format!("{name}-{i}"), i)).collect();
        for request in &requests {
            submit(bus, request).await?;
        }
        Ok(requests)
    }

    /// Waits for the end of every job and checks that each has its undisturbed answer, and that nothing stays behind.
    ///
    /// # Errors
    /// The first job without that answer, or the messages left behind.
    pub async fn check(&self, rig: &Rig, requests: &[JobRequest]) -> anyhow::Result<()> {
        for request in requests {
            rig.events(&request.job).await?;
        }
        for request in requests {
            self.check_answer(rig, request).await.with_context(|| format!("{}; {}", request.job, look::tail(rig)))?;
        }
        look::empty(rig).await
    }

    /// Checks that an ended job has its undisturbed answer.
    ///
    /// # Errors
    /// The difference.
    pub async fn check_answer(&self, rig: &Rig, request: &JobRequest) -> anyhow::Result<()> {
        let events = look::log_of(&rig.bus, &request.job).await;
        let got = look::result(&events)?;
        let at = self
            .kinds
            .iter()
            .position(|k| (&k.video, &k.query) == (&request.video, &request.query))
            .context("no such kind")?;
        ensure!(got.token_ids == self.answers[at], "{:?} is not {:?}", got.token_ids, self.answers[at]);
        look::told_once(&events, &got.text)
    }
}

/// Submits, with retries while the broker is unreachable.
///
/// # Errors
/// If it stays unreachable for a minute.
pub async fn submit(bus: &Bus, request: &JobRequest) -> anyhow::Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match client::submit(bus, request).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Path of a new long video, for jobs that are to last.
///
/// # Errors
/// ffmpeg's.
pub fn long_video(rig: &Rig, seconds: u32) -> anyhow::Result<PathBuf> {
    let path = rig.media().join(format!("long-{seconds}.mp4"));
    crate::media::video(&path, seconds)?;
    Ok(path)
}

/// A question of so many tokens about a long video.
///
/// # Errors
/// ffmpeg's.
pub fn long_job(rig: &Rig, name: &str, max_new_tokens: u32) -> anyhow::Result<JobRequest> {
    let clip = rig.media().join("long-20.mp4");
    if !clip.is_file() {
        long_video(rig, 20)?;
    }
    Ok(JobRequest { max_new_tokens, ..JobRequest::new(JobId::new(name)?, clip.to_string_lossy(), "a dog") })
}
