//! Tests of videos on disk: a stage that has just started answers about them as one that has computed them, and whatever happens to a
//! file costs time at most.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use crate::fixture::{Batch, FakePort, HIDDEN, Model, info, random, request};
use candle_core::Tensor;
use config::KvPrecision;
use protocol::event::{Cached, Event, JobResult};
use protocol::message::{JobRequest, Modality};
use protocol::plan::{FrameGrid, MediaInfo, MediaPlan};
use protocol::stage::Stop;
use stage_llm::job::answer::{LlmStage, Settings};
use stage_llm::job::parked::directory::{Directory, Place};
use stage_llm::job::parked::list;

use Cached::{Disk, Memory, No};

const AUDIO: usize = 40;
/// Longest time until a file is written.
const SOON: Duration = Duration::from_secs(30);

fn file(content_id: &str) -> MediaInfo {
    MediaInfo { content_id: content_id.to_owned(), ..info(3, AUDIO as u64) }
}

/// Rest of the pipeline for a file, whose tokens follow from its content.
fn port(file: &MediaInfo) -> FakePort {
    let seed = file.content_id.bytes().map(u64::from).sum::<u64>();
    let tokens = |rows: usize, seed: u64| -> Tensor { (random(&[rows, HIDDEN], seed) * 0.05).unwrap() };
    let plan = MediaPlan::new(file, None, 1.0, FrameGrid::default()).unwrap();
    let image = plan.image.map(|image| Batch::Rows(Modality::Image, 0, tokens(image.tokens as usize, seed)));
    let audio = file.has_audio.then(|| Batch::Rows(Modality::Audio, 0, tokens(AUDIO, seed + 1)));
    FakePort::new(file.clone(), audio.into_iter().chain(image))
}

fn settings(dir: &Path, kv: KvPrecision) -> Settings {
    let mut settings = Settings { fingerprint: "a model".to_owned(), ..Settings::default() };
    settings.llm.kv = kv;
    settings.llm.park_dir = Some(dir.to_owned());
    settings
}

/// Heads of 12 are none that can be quantized.
fn model(kv: KvPrecision) -> Model {
    let head_dim = if kv == KvPrecision::Dense { 12 } else { 64 };
    Model::with(serde_json::json!({ "head_dim": head_dim }), |_, t| t)
}

struct Rig {
    dir: tempfile::TempDir,
    model: Model,
    settings: Settings,
}

impl Rig {
    fn new(kv: KvPrecision) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(&dir.path().join("parked"), kv);
        Rig { dir, model: model(kv), settings }
    }

    fn stage(&self) -> LlmStage {
        self.model.stage(self.settings.clone()).unwrap()
    }

    fn directory(&self) -> PathBuf {
        self.settings.llm.park_dir.clone().unwrap()
    }

    /// Answer of a stage that ends afterwards, once all that it parks is written.
    fn asked(&self, asked: &JobRequest, port: &mut FakePort) -> JobResult {
        self.stage().answer(asked, port).unwrap()
    }

    fn files(&self) -> Vec<PathBuf> {
        Directory::new(&self.directory()).files().unwrap().into_iter().map(|file| file.path).collect()
    }
}

/// Where the video was known, as each `planned` event says.
fn planned(port: &FakePort) -> Vec<Cached> {
    let cached = |e: &Event| if let Event::Planned { cached, .. } = e { Some(*cached) } else { None };
    port.events.iter().filter_map(cached).collect()
}

#[test]
fn a_stage_that_has_just_started_answers_about_a_parked_video_as_the_one_that_computed_it() {
    for kv in [KvPrecision::Dense, KvPrecision::Q8, KvPrecision::Q4] {
        let rig = Rig::new(kv);
        let first = rig.asked(&request("a cat", 12), &mut port(&file("a")));
        assert_eq!((first.cached, rig.files().len()), (No, 1));
        // What computes it as if nothing had been there.
        let fresh = Settings { llm: config::LlmConfig { kv, ..Default::default() }, ..Settings::default() };
        let want = rig.model.stage(fresh).unwrap().answer(&request("a dog", 12), &mut port(&file("a"))).unwrap();
        let mut stage = rig.stage();
        for (round, cached) in [Disk, Memory].into_iter().enumerate() {
            let mut again = FakePort::without_decoder(file("a"));
            let got = stage.answer(&request("a dog", 12), &mut again).unwrap();
            assert_eq!((got.cached, planned(&again)), (cached, vec![cached]), "{kv:?}, round {round}");
            assert_eq!((&got.token_ids, &got.plan), (&want.token_ids, &want.plan), "{kv:?}, round {round}");
            assert_eq!(again.probes, 1, "the file may have changed");
        }
    }
}

#[test]
fn videos_with_pictures_or_sound_alone_and_parts_of_them_are_parked_and_chapters_are_cut_alike() {
    let rig = Rig::new(KvPrecision::Dense);
    let silent = MediaInfo { has_audio: false, audio_samples: 0, ..file("silent") };
    let spoken = MediaInfo { frames: 0, ..file("spoken") };
    for file in [&silent, &spoken] {
        let first = rig.asked(&request("a cat", 6), &mut port(file));
        let again = rig.asked(&request("a cat", 6), &mut FakePort::without_decoder(file.clone()));
        assert_eq!((first.cached, again.cached, &again.token_ids), (No, Disk, &first.token_ids));
        // Another span or rate is another video.
        for other in [
            JobRequest { span: Some([0.0, 99.0]), ..request("a cat", 6) },
            JobRequest { fps: 0.9, ..request("a cat", 6) },
        ] {
            let mut port = port(file);
            assert_eq!(rig.asked(&other, &mut port).cached, No, "{other:?}");
        }
    }
    assert_eq!(rig.files().len(), 6);
    // 50 s, of which chapters of 10 s and more are cut.
    let film = MediaInfo { frames: 50, duration_s: 50.0, ..file("film") };
    let chapters = JobRequest { task: "chapters".to_owned(), ..request("", 4) };
    let first = rig.asked(&chapters, &mut port(&film));
    let again = rig.asked(&chapters, &mut FakePort::without_decoder(film));
    assert_eq!((again.cached, &again.ranges, &again.answers), (Disk, &first.ranges, &first.answers));
}

#[test]
fn a_file_that_is_damaged_anywhere_or_cut_short_or_of_another_model_is_counted_and_its_video_computed_again() {
    let rig = Rig::new(KvPrecision::Q4);
    let first = rig.asked(&request("a cat", 12), &mut port(&file("a")));
    let path = rig.files().pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let mut wrong: Vec<(String, Vec<u8>)> = Vec::new();
    let mut draw = 0x9e37_79b9_7f4a_7c15_u64;
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize + 8;
    let padding = whole[..header].iter().rev().take_while(|&&b| b == b' ').count();
    for round in 0..60 {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Half of them in the header, where what is damaged is most dangerous; what pads it means nothing.
        let range = if round % 2 == 0 { header - padding } else { whole.len() };
        let place = (draw >> 17) as usize % range;
        if (header - padding..header).contains(&place) {
            continue;
        }
        let mut damaged = whole.clone();
        damaged[place] ^= 1 << (draw % 8);
        wrong.push((format!("bit {} of byte {place}", draw % 8), damaged));
    }
    for length in [0, 7, 8, 100, header, header + 1, whole.len() / 2, whole.len() - 1] {
        wrong.push((format!("cut to {length}"), whole[..length].to_vec()));
    }
    wrong.push(("a byte more".to_owned(), [whole.as_slice(), &[0]].concat()));
    wrong.push(("foreign".to_owned(), b"not a parked video at all".to_vec()));
    let huge = [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat();
    wrong.push(("a header of 2^64 bytes".to_owned(), huge));
    for (what, bytes) in wrong {
        fs::write(&path, &bytes).unwrap();
        let mut stage = rig.stage();
        let mut again = port(&file("a"));
        let got = stage.answer(&request("a cat", 12), &mut again).unwrap();
        assert_eq!((got.cached, &got.token_ids), (No, &first.token_ids), "{what}");
        assert_eq!(stage.kept().parked().unwrap().damaged(), 1, "{what}");
        // The client is told again if it was told that the video comes from the disk.
        assert!(matches!(planned(&again)[..], [No] | [Disk, No]), "{what}: {:?}", planned(&again));
        drop(stage);
        assert!(fs::read(&path).unwrap() == whole, "{what}: it was not written again");
    }
    // Another model's video under this one's name.
    let mut others = settings(&rig.dir.path().join("other"), KvPrecision::Q4);
    others.fingerprint = "another model".to_owned();
    rig.model.stage(others.clone()).unwrap().answer(&request("a cat", 12), &mut port(&file("a"))).unwrap();
    let other = Directory::new(others.llm.park_dir.as_deref().unwrap()).files().unwrap().pop().unwrap();
    assert_ne!(other.path.file_name(), path.file_name());
    fs::copy(other.path, &path).unwrap();
    let mut stage = rig.stage();
    assert_eq!(stage.answer(&request("a cat", 12), &mut port(&file("a"))).unwrap().cached, No);
    assert_eq!(stage.kept().parked().unwrap().damaged(), 1);
}

#[test]
fn another_model_or_format_finds_no_video_and_the_same_by_another_name_does() {
    let rig = Rig::new(KvPrecision::Q4);
    rig.asked(&request("a cat", 6), &mut port(&file("a")));
    let changes: [fn(&mut Settings); 3] = [
        |s| s.fingerprint = "another".to_owned(),
        |s| s.quantized_fingerprint = "another".to_owned(),
        |s| s.llm.kv = KvPrecision::Q8,
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut settings = rig.settings.clone();
        change(&mut settings);
        let mut stage = rig.model.stage(settings).unwrap();
        assert!(stage.kept().names().is_empty(), "change {i}");
        assert_eq!(stage.answer(&request("a cat", 6), &mut port(&file("a"))).unwrap().cached, No, "change {i}");
        assert_eq!(stage.kept().parked().unwrap().damaged(), 0, "change {i}");
    }
    let mut renamed = rig.settings.clone();
    renamed.name = "the same by another name".to_owned();
    let mut stage = rig.model.stage(renamed).unwrap();
    assert_eq!(stage.kept().names().len(), 1);
    assert_eq!(stage.answer(&request("a cat", 6), &mut FakePort::without_decoder(file("a"))).unwrap().cached, Disk);
}

#[test]
fn the_least_recently_used_files_give_way_to_the_quota_and_no_more_than_must() {
    let mut rig = Rig::new(KvPrecision::Q8);
    rig.asked(&request("a cat", 2), &mut port(&file("a")));
    let bytes = fs::metadata(&rig.files()[0]).unwrap().len();
    rig.settings.llm.park_bytes = 3 * bytes + bytes / 2;
    for content in ["b", "c"] {
        rig.asked(&request("a cat", 2), &mut port(&file(content)));
    }
    // The first one is used again: the second one goes.
    for (i, path) in rig.files().iter().enumerate() {
        let at = SystemTime::now() - Duration::from_secs(100 - i as u64);
        File::options().write(true).open(path).unwrap().set_modified(at).unwrap();
    }
    assert_eq!(rig.asked(&request("a cat", 2), &mut FakePort::without_decoder(file("a"))).cached, Disk);
    rig.asked(&request("a cat", 2), &mut port(&file("d")));
    assert_eq!(rig.files().len(), 3);
    for (content, cached) in [("a", Disk), ("c", Disk), ("d", Disk), ("b", No)] {
        assert_eq!(rig.asked(&request("a cat", 2), &mut port(&file(content))).cached, cached, "{content}");
    }
    // Smaller than one video: nothing is written, and nothing that is there goes.
    rig.settings.llm.park_bytes = bytes - 1;
    assert_eq!(rig.asked(&request("a cat", 2), &mut port(&file("e"))).cached, No);
    assert_eq!(rig.files().len(), 3);
}

#[test]
fn a_directory_that_cannot_be_used_costs_no_answer() {
    let mut rig = Rig::new(KvPrecision::Dense);
    fs::write(rig.dir.path().join("file"), "in the way").unwrap();
    rig.settings.llm.park_dir = Some(rig.dir.path().join("file/parked"));
    for _ in 0..2 {
        assert_eq!(rig.asked(&request("a cat", 6), &mut port(&file("a"))).cached, No);
    }
}

#[test]
fn what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not() {
    let rig = Rig::new(KvPrecision::Dense);
    let directory = Directory::new(&rig.directory());
    directory.prepare().unwrap();
    let left = rig.directory().join(".0123.99999-0.unfinished");
    fs::write(&left, vec![0; 1000]).unwrap();
    let Place::Free(living) = directory.begin("4567", 1000, 1 << 30).unwrap() else { panic!("refused") };
    // Beginning has removed it; so does a stage that starts.
    assert!(!left.exists());
    fs::write(&left, vec![0; 1000]).unwrap();
    drop(rig.stage());
    assert!(!left.exists() && rig.files().is_empty());
    let written =
        || fs::read_dir(rig.directory()).unwrap().filter(|e| e.as_ref().unwrap().file_name() != "lock").count();
    assert_eq!(written(), 1);
    // It counts, and nobody begins the same.
    assert!(matches!(directory.begin("4567", 1000, 1 << 30).unwrap(), Place::Taken));
    assert!(matches!(directory.begin("89ab", 1000, 1999).unwrap(), Place::Refused(why) if why.contains("1000")));
    living.finish().unwrap();
    assert_eq!((rig.files().len(), written()), (1, 1));
    assert!(matches!(directory.begin("4567", 1000, 1 << 30).unwrap(), Place::Taken));
    // One that is given up leaves nothing.
    drop(directory.begin("89ab", 1000, 1 << 30).unwrap());
    assert_eq!(written(), 1);
}

#[test]
fn two_stages_on_one_directory_park_a_video_once_and_read_what_the_other_one_parked() {
    let rig = Rig::new(KvPrecision::Q8);
    let contents = ["a", "b", "c", "d"];
    std::thread::scope(|scope| {
        for turn in 0..2 {
            let rig = &rig;
            scope.spawn(move || {
                let model = model(KvPrecision::Q8);
                let mut stage = model.stage(rig.settings.clone()).unwrap();
                for round in 0..8 {
                    let content = contents[(round + 2 * turn) % contents.len()];
                    stage.answer(&request("a cat", 4), &mut port(&file(content))).unwrap();
                }
            });
        }
    });
    assert_eq!(rig.files().len(), contents.len());
    let left = fs::read_dir(rig.directory()).unwrap().count();
    assert_eq!(left, contents.len() + 1, "the lock and the files");
    let want = rig.model.stage(Settings {
        llm: config::LlmConfig { kv: KvPrecision::Q8, ..Default::default() },
        ..Settings::default()
    });
    let mut want = want.unwrap();
    for content in contents {
        let got = rig.asked(&request("a dog", 8), &mut FakePort::without_decoder(file(content)));
        assert_eq!(got.token_ids, want.answer(&request("a dog", 8), &mut port(&file(content))).unwrap().token_ids);
    }
}

#[test]
fn who_keeps_no_video_in_memory_reads_each_from_disk_once_it_is_written() {
    let mut rig = Rig::new(KvPrecision::Dense);
    rig.settings.llm.keep_video = false;
    let mut stage = rig.stage();
    assert_eq!(stage.answer(&request("a cat", 6), &mut port(&file("a"))).unwrap().cached, No);
    let since = Instant::now();
    while rig.files().is_empty() || stage.kept().bytes() > 0 {
        assert!(since.elapsed() < SOON, "{} bytes are kept", stage.kept().bytes());
        std::thread::sleep(Duration::from_millis(5));
    }
    for _ in 0..2 {
        let got = stage.answer(&request("a dog", 6), &mut FakePort::without_decoder(file("a"))).unwrap();
        assert_eq!((got.cached, stage.kept().bytes()), (Disk, 0));
    }
}

#[test]
fn a_cancelled_read_ends_the_job_and_leaves_the_file() {
    let rig = Rig::new(KvPrecision::Dense);
    rig.asked(&request("a cat", 6), &mut port(&file("a")));
    let mut stage = rig.stage();
    let mut cancelled = FakePort::without_decoder(file("a"));
    cancelled.cancel_after = 0;
    assert_eq!(stage.answer(&request("a cat", 6), &mut cancelled).unwrap_err(), Stop::Cancelled);
    assert_eq!(rig.files().len(), 1);
    assert!(stage.answer(&request("a cat", 6), &mut FakePort::without_decoder(file("a"))).unwrap().cached.is_known());
}

#[test]
fn a_video_whose_question_failed_in_the_model_is_not_on_disk_afterwards() {
    let damaged = Model::with(serde_json::json!({}), |name, t| {
        if name == "model.norm.weight" { Some((t? * f64::NAN).unwrap()) } else { t }
    });
    let rig = Rig::new(KvPrecision::Dense);
    let mut stage = damaged.stage(rig.settings.clone()).unwrap();
    assert!(stage.answer(&request("a cat", 6), &mut port(&file("a"))).is_err());
    drop(stage);
    assert!(rig.files().is_empty());
    // Nor is one that was there before.
    rig.asked(&request("a cat", 6), &mut port(&file("a")));
    assert_eq!(rig.files().len(), 1);
    let mut stage = damaged.stage(rig.settings.clone()).unwrap();
    assert!(stage.answer(&request("a cat", 6), &mut FakePort::without_decoder(file("a"))).is_err());
    assert!(rig.files().is_empty());
}

#[test]
fn a_parked_video_that_has_no_room_beside_the_question_is_not_read() {
    let rig = Rig::new(KvPrecision::Dense);
    rig.asked(&request("a cat", 6), &mut port(&file("a")));
    let footprint = *rig.stage().footprint();
    let budget = |tokens: u64| footprint.fixed.bytes() + tokens * footprint.text_token_bytes;
    let settings = Settings { budget_bytes: Some(budget(638 + 512)), ..rig.settings.clone() };
    let mut stage = rig.model.stage(settings).unwrap();
    let refused = stage.answer(&request("a dog", 2000), &mut FakePort::without_decoder(file("a")));
    assert!(matches!(refused, Err(Stop::Failed(e)) if e.kind == protocol::error::ErrorKind::DoesNotFit));
    assert_eq!(stage.kept().bytes(), 0);
    assert_eq!(stage.answer(&request("a dog", 6), &mut FakePort::without_decoder(file("a"))).unwrap().cached, Disk);
}

#[test]
fn files_are_safetensors_and_a_list_of_them_says_what_they_are() {
    let rig = Rig::new(KvPrecision::Q4);
    let spanned = JobRequest { span: Some([0.0, 50.0]), ..request("a cat", 4) };
    let half = MediaInfo { duration_s: 50.0, ..file("a") };
    rig.asked(&spanned, &mut port(&half));
    let path = rig.files().pop().unwrap();
    let bytes = fs::read(&path).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    // Keys and values of four layers, of pictures and sound, and what is known of the pictures.
    assert_eq!(read.len(), 2 * 2 * 4 + 1);
    assert_eq!(read.tensor("image.3.v").unwrap().dtype(), safetensors::Dtype::U8);
    assert_eq!(read.tensor("pictures").unwrap().shape()[0], 3);
    let damaged = rig.directory().join("ffff.kv.safetensors");
    fs::write(&damaged, "no video").unwrap();
    let listed = list::list(&rig.directory()).unwrap();
    let [bad, good] = &listed[..] else { panic!("{listed:?}") };
    assert!(bad.id == "ffff" && bad.about.is_none() && bad.damage.is_some() && bad.bytes == 8, "{bad:?}");
    let about = good.about.as_ref().unwrap();
    assert_eq!((about.video.as_str(), about.span, about.kv.as_str()), ("video.mp4", Some([0.0, 50.0]), "q4"));
    assert_eq!((good.bytes, about.tokens), (bytes.len() as u64, 3 * 196 + AUDIO as u64));
    assert_eq!([&good.id, &bad.id, "none"].map(|id| list::remove(&rig.directory(), id).unwrap()), [true, true, false]);
    assert!(list::list(&rig.directory()).unwrap().is_empty() && list::list(Path::new("/nowhere")).unwrap().is_empty());
    assert!(!list::remove(Path::new("/nowhere"), "x").unwrap() && !Path::new("/nowhere").exists());
}
