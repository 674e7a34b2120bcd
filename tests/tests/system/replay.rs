//! Tests of recordings: a recording is read as far as it is complete, and the stages' output for its input is unchanged.

#![cfg(feature = "gstreamer")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use config::{BusConfig, Config};
use deploy::recording::compare::Comparison;
use deploy::recording::format::{End, Entry, Filter, RecordingErrorKind};
use deploy::recording::kind::Part;
use deploy::recording::publication::publications;
use deploy::recording::{Header, Kind, Reader, Record, Writer};
use deploy::up::broker::{self, Broker};
use protocol::event::{Event, JobEvent};
use protocol::message::{DecodeRequest, JobId, JobRequest, Output};
use protocol::stage::{Port, Stage, Stop};
use protocol::wire::{self, WireError};
use runtime::bus::{Bus, Role};
use runtime::subject::{StreamName, Subjects};
use tests::harness::{Rig, Setup, checkpoint, root, terminal, vidi};
use tests::media::video;
use tests::pipeline::answer_in_process;

/// Relative root mean square up to which f32 outputs of two processors agree.
const TOLERANCE: f64 = 1e-5;

/// The golden recordings, all of one job and made with the checkpoint `tied`.
fn recordings() -> anyhow::Result<Vec<PathBuf>> {
    let files = std::fs::read_dir(root().join("tests/golden/recordings"))?.flatten().map(|e| e.path());
    let files: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "vidirec")).collect();
    ensure!(!files.is_empty(), "no golden recordings");
    Ok(files)
}

/// A whole recording: header, messages, job.
fn read(path: &Path) -> anyhow::Result<(Header, Vec<Record>, JobId)> {
    let mut reader = Reader::open(path)?;
    let records = reader.records();
    ensure!(reader.loss().is_none() && reader.end().is_some_and(End::is_complete), "{:?}", reader.loss());
    let jobs: BTreeSet<JobId> = records.iter().filter_map(Record::job).collect();
    ensure!(jobs.len() == 1, "{jobs:?}");
    Ok((reader.header().clone(), records, jobs.into_iter().next().context("no job")?))
}

fn of(kind: Kind, records: &[Record]) -> impl Iterator<Item = &Record> {
    records.iter().filter(move |r| r.kind() == Some(kind))
}

fn events(records: &[Record]) -> Result<Vec<JobEvent>, WireError> {
    of(Kind::Events, records).map(|r| wire::decode_any(&r.body)).collect()
}

/// Port that compares the output of a stage with the recorded one.
struct Against(Comparison);

impl Port for Against {
    fn emit(&mut self, output: Output<'_>) -> Result<(), Stop> {
        let kind = match &output {
            Output::Frames(_) => Kind::Frames,
            Output::Pcm(_) => Kind::Audio,
            Output::Features(_) => Kind::Features,
            Output::Tokens(_) => Kind::Tokens,
        };
        self.0.take(kind, &output);
        Ok(())
    }

    fn cancelled(&self) -> bool {
        false
    }
}

/// Runs a stage on its recorded inputs, each decoded by `input`, and compares all its output.
fn same_as_recorded<S: Stage>(
    mut stage: S,
    path: &Path,
    kind: Kind,
    input: impl for<'a> Fn(&'a [u8]) -> Option<S::Input<'a>>,
) -> anyhow::Result<()> {
    let (_, records, job) = read(path)?;
    let parts: Vec<Part> = kind.outputs().to_vec();
    let mut port = Against(Comparison::read(&mut Reader::open(path)?, &job, &parts, false)?);
    ensure!(!port.0.is_empty(), "nothing to compare");
    for record in of(kind, &records) {
        if let Some(input) = input(&record.body) {
            stage.process(input, &mut port).map_err(|stop| anyhow::anyhow!("{stop:?}"))?;
        }
    }
    ensure!(port.0.holds(TOLERANCE), "{kind} in {}: {:?}", path.display(), port.0.agreements());
    Ok(())
}

#[test]
fn todays_stages_read_every_golden_recording_and_give_the_recorded_outputs() -> anyhow::Result<()> {
    let mut config = Config::default();
    config.model.dir = checkpoint("tied");
    let media = root().join("tests/golden/recordings");
    config.decode.media_roots = vec![media.clone()];
    for path in recordings()? {
        let name = path.file_name().context("no name")?.to_string_lossy().into_owned();
        let (header, _, _) = read(&path)?;
        ensure!(name.starts_with(&format!("v{}-", header.wire)), "{name} has wire version {}", header.wire);
        same_as_recorded(stage_decode::open(&config)?, &path, Kind::Decode, |body| {
            let mut request: DecodeRequest = wire::decode(body).ok()?;
            let file = Path::new(&request.video).file_name()?.to_owned();
            request.video = media.join(file).to_string_lossy().into_owned();
            // It has another time of modification here, and so another identity.
            request.plan.content_id.clear();
            Some(request)
        })?;
        same_as_recorded(stage_vision::open(&config)?, &path, Kind::Frames, |body| wire::decode(body).ok())?;
        same_as_recorded(stage_audio::open(&config)?, &path, Kind::Audio, |body| wire::decode(body).ok())?;
        same_as_recorded(stage_fuse::open(&config)?, &path, Kind::Features, |body| wire::decode(body).ok())?;
    }
    Ok(())
}

#[test]
fn the_recorded_question_has_the_recorded_answer() -> anyhow::Result<()> {
    for path in recordings()? {
        let (_, records, _) = read(&path)?;
        let request: JobRequest = wire::decode_any(&of(Kind::Jobs, &records).next().context("no request")?.body)?;
        let mut frames = Vec::new();
        for record in of(Kind::Frames, &records) {
            let batch: protocol::message::FrameBatch<'_> = wire::decode(&record.body)?;
            frames.extend_from_slice(batch.tensor.data());
        }
        let mut pcm = Vec::new();
        for record in of(Kind::Audio, &records) {
            let window: protocol::message::PcmWindow<'_> = wire::decode(&record.body)?;
            pcm.extend(window.tensor.to_i16());
        }
        let events = events(&records)?;
        let Event::Result(recorded) = terminal(&events)? else { anyhow::bail!("the recorded job failed") };
        let answer = answer_in_process(&checkpoint("tied"), Some(&frames), Some(&pcm), &request)
            .map_err(|stop| anyhow::anyhow!("{stop:?}"))?;
        ensure!(answer.token_ids == recorded.token_ids && answer.text == recorded.text, "{answer:?}; {recorded:?}");
    }
    Ok(())
}

/// A small recording of several blocks.
struct Small {
    records: Vec<Record>,
    bytes: Vec<u8>,
    /// Length of the file after the header and after each block, with the number of records up to there.
    whole: Vec<(usize, usize)>,
}

fn small() -> anyhow::Result<Small> {
    let header = Header {
        wire: wire::VERSION,
        prefix: "vidi.v1".to_owned(),
        started_ms: 1,
        vidi: "0".to_owned(),
        server: String::new(),
        max_payload: 1 << 20,
        filter: Filter::default(),
    };
    let record = |i: u64| Record {
        at_us: 1000 * i,
        subject: format!("frames.job-{}", i % 3),
        headers: vec![("Nats-Msg-Id".to_owned(), format!("job/frames-1/{i}"))],
        // Some that pack well, some that do not, and an empty one.
        body: (0..i * 7).map(|b| if i.is_multiple_of(2) { 0 } else { (b * b * 31 + i) as u8 }).collect(),
    };
    let records: Vec<Record> = (0..12).map(record).collect();
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &header)?;
    let mut whole = vec![(writer.written() as usize, 0)];
    for (i, record) in records.iter().enumerate() {
        writer.push(&Entry::Message(record.clone()))?;
        // Blocks of one, two and three records.
        if [0, 2, 5, 6, 8, 11].contains(&i) {
            writer.flush()?;
            whole.push((writer.written() as usize, i + 1));
        }
    }
    writer.push(&Entry::End(End { messages: 12, ..End::default() }))?;
    writer.into_inner()?;
    Ok(Small { records, bytes, whole })
}

#[test]
fn a_recording_cut_at_any_byte_gives_everything_before_the_cut_and_says_so() -> anyhow::Result<()> {
    let Small { records, bytes, whole } = small()?;
    let mut reader = Reader::new(&bytes[..])?;
    ensure!(reader.records() == records && reader.end().is_some() && reader.loss().is_none());
    for cut in 0..bytes.len() {
        let Some(&(_, kept)) = whole.iter().rev().find(|(length, _)| *length <= cut) else {
            let error = Reader::new(&bytes[..cut]).err().with_context(|| format!("a header cut at {cut}"))?;
            ensure!(error.kind() == RecordingErrorKind::Cut, "cut at {cut}: {error}");
            continue;
        };
        let mut reader = Reader::new(&bytes[..cut])?;
        ensure!(reader.records() == records[..kept], "cut at {cut}");
        ensure!(reader.end().is_none() && reader.loss().is_some_and(|l| l.kind() == RecordingErrorKind::Cut));
    }
    Ok(())
}

#[test]
fn a_changed_bit_anywhere_in_a_recording_is_noticed_and_what_comes_before_it_is_read() -> anyhow::Result<()> {
    let Small { records, bytes, whole } = small()?;
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            match Reader::new(&changed[..]) {
                Err(_) => ensure!(at < whole[0].0, "a changed byte {at} spoils the header"),
                Ok(mut reader) => {
                    let kept = whole.iter().rev().find(|(length, _)| *length <= at).context("a header that is off")?.1;
                    ensure!(reader.records() == records[..kept], "bit {bit} of byte {at}");
                    ensure!(reader.end().is_none() && reader.loss().is_some(), "bit {bit} of byte {at}");
                }
            }
        }
    }
    let mut longer = bytes.clone();
    longer.push(0);
    let mut reader = Reader::new(&longer[..])?;
    ensure!(reader.records() == records && reader.end().is_none());
    ensure!(reader.loss().is_some_and(|l| l.kind() == RecordingErrorKind::Damaged));
    Ok(())
}

#[test]
fn a_job_played_under_another_id_has_that_id_everywhere_and_fits_a_smaller_broker() -> anyhow::Result<()> {
    let subjects = Subjects::new("other.v1");
    let new = JobId::new("another")?;
    let most = 512 << 10;
    for path in recordings()? {
        let (_, records, old) = read(&path)?;
        let mut cut = 0;
        for record in records.iter().filter(|r| r.kind().is_some_and(|k| Kind::PLAYABLE.contains(&k))) {
            let out = publications(record, &subjects, Some(&new), most)?;
            cut += usize::from(out.len() > 1);
            for p in out {
                ensure!(p.subject.starts_with("other.v1.") && !p.subject.contains(old.as_str()), "{p:?}");
                ensure!(p.message_id.starts_with("another/") && p.job == new && p.body.len() <= most, "{p:?}");
                let mut ids = p.body.windows(old.as_str().len()).filter(|w| *w == old.as_str().as_bytes());
                ensure!(ids.next().is_none(), "{} still names {old}", record.subject);
            }
        }
        ensure!(cut > 0, "no message was too large: this test shows nothing");
    }
    Ok(())
}

/// Broker with one stage.
struct OneStage {
    broker: Broker,
    stage: Child,
    dir: tempfile::TempDir,
}

impl OneStage {
    async fn start(name: &str) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let broker = Broker::start(&dir.path().join("broker"), &broker::Options::default()).await?;
        let stage = Command::new(vidi()?)
            .args(["--set", &format!("bus.url={}", broker.url())])
            .args(["--set", &format!("model.dir={}", checkpoint("tied").display())])
            .args(["stage", name])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(OneStage { broker, stage, dir })
    }

    /// Exit status and output of `vidi replay`.
    async fn replay(&self, file: &Path, args: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
        let output = tokio::process::Command::new(vidi()?)
            .args(["--set", &format!("bus.url={}", self.broker.url())])
            .arg("replay")
            .arg(file)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .await?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// A copy of a recording with its messages of one kind altered.
    fn altered(&self, path: &Path, name: &str, kind: Kind, alter: impl Fn(&mut Record)) -> anyhow::Result<PathBuf> {
        let (header, records, _) = read(path)?;
        let copy = self.dir.path().join(name);
        let mut writer = Writer::new(std::fs::File::create(&copy)?, &header)?;
        for mut record in records {
            if record.kind() == Some(kind) {
                alter(&mut record);
            }
            writer.push(&Entry::Message(record))?;
        }
        writer.push(&Entry::End(End::default()))?;
        writer.into_inner()?;
        Ok(copy)
    }
}

impl Drop for OneStage {
    fn drop(&mut self) {
        // Whether it ended by itself does not matter any more.
        let _ = self.stage.kill();
        let _ = self.stage.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_stage_passes_the_check_against_its_recording_and_fails_it_against_an_altered_one()
-> anyhow::Result<()> {
    let one = OneStage::start("vision").await?;
    let golden = recordings()?.swap_remove(0);
    let check = ["--only", "frames", "--check", "--patience", "5"];
    // Twice: a check leaves nothing behind that the next one would meet.
    for _ in 0..2 {
        let (status, text) = one.replay(&golden, &check).await?;
        ensure!(status == Some(0) && text.contains("agrees"), "{status:?}: {text}");
    }
    // A mantissa bit of one f32 that is no padding, a third from the end; the rows are what a body ends with.
    let one_value = one.altered(&golden, "value.vidirec", Kind::Features, |r| {
        let byte = r.body.len() - 2 - r.body.len() / 12 * 4;
        r.body[byte] ^= 0x40;
    })?;
    let (status, text) = one.replay(&one_value, &check).await?;
    ensure!(status == Some(1) && text.contains("DIFFERS"), "{status:?}: {text}");
    let other_picture = one.altered(&golden, "frames.vidirec", Kind::Frames, |r| {
        // The middle of the first of two frames: the tower does not look at the last six rows and columns.
        let middle = r.body.len() / 4;
        r.body[middle] ^= 0x80;
    })?;
    let (status, text) = one.replay(&other_picture, &check).await?;
    ensure!(status == Some(1) && text.contains("DIFFERS"), "{status:?}: {text}");
    let less_input =
        one.altered(&golden, "less.vidirec", Kind::Frames, |r| r.subject = "report.recorded".to_owned())?;
    let (status, text) = one.replay(&less_input, &[&check[..], &["--pick", "recorded"]].concat()).await?;
    ensure!(status == Some(1) && text.contains("missing"), "{status:?}: {text}");
    let (status, text) = one.replay(&golden, &["--only", "audio", "--check"]).await?;
    ensure!(status == Some(1) && text.contains("audio missing"), "{status:?}: {text}");

    // Nobody takes features here: they are gone because every check took them away.
    let config = BusConfig { url: one.broker.url().into(), ..BusConfig::default() };
    let bus = Bus::connect(&config, Role::Client, Duration::from_secs(30)).await?;
    for stream in StreamName::ALL {
        let left = bus.stream(stream).await.get_info().await?.state.messages;
        ensure!(left == 0, "{left} messages are left in {stream:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_live_job_put_on_the_bus_is_recorded_without_disturbing_it_and_asked_again() -> anyhow::Result<()> {
    let rig = Rig::start(Setup::default()).await?;
    let clip = rig.media().join("clip.mp4");
    video(&clip, 5)?;
    let file = rig.dir.path().join("live.vidirec");
    let mut recorder = tokio::process::Command::new(vidi()?)
        .args(["--set", &format!("bus.url={}", rig.broker.url()), "record", "--job", "live", "--out"])
        .arg(&file)
        .kill_on_drop(true)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let mut said = tokio::io::BufReader::new(recorder.stderr.take().context("no pipe")?);
    let mut line = String::new();
    while !line.contains("recording") {
        line.clear();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut said, &mut line).await?;
        ensure!(read > 0, "the recorder ended");
    }
    let question = |job: &str| -> anyhow::Result<JobRequest> {
        Ok(JobRequest { max_new_tokens: 12, ..JobRequest::new(JobId::new(job)?, clip.to_string_lossy(), "a dog") })
    };
    // Another job's messages stay out.
    rig.answer(&question("other")?).await?;
    let events = rig.answer(&question("live")?).await?;
    let status = tokio::time::timeout(Duration::from_secs(60), recorder.wait()).await??;
    ensure!(status.success(), "{status}");

    let (header, records, job) = read(&file)?;
    ensure!(header.filter.job == Some(job.clone()) && job.as_str() == "live");
    let mut heard = self::events(&records)?;
    // What the stream refuses (another writer was faster) a subscriber hears all the same; its owner tells it again.
    heard.retain(|event| events.contains(event) || events.iter().all(|other| other.seq != event.seq));
    ensure!(heard == events, "{heard:?} was recorded, {events:?} happened");
    for kind in Kind::PLAYABLE {
        ensure!(of(kind, &records).next().is_some(), "no {kind} in the recording");
    }
    let shown = rig.run(&["recording", "show", &file.to_string_lossy()])?;
    ensure!(shown.status.success() && String::from_utf8_lossy(&shown.stdout).contains("job live"), "{shown:?}");
    let again = rig.run(&["replay", &file.to_string_lossy(), "--only", "jobs", "--check"])?;
    ensure!(again.status.success(), "{again:?}");
    Ok(())
}
