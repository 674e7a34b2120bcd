use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use config::Size;
use model::checkpoint::Checkpoint;
use model::config_json::family::POOL_WEIGHT;
use model::config_json::{Family, ModelConfig};
use model::demo_model::DEFAULT_SEED;
use model::demo_model::size::Dtype;
use safetensors::{Dtype as StoredDtype, SafeTensors};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use super::*;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// File name to SHA-256.
fn digests(dir: &Path) -> BTreeMap<String, String> {
    let digest = |path: PathBuf| {
        let hex = Sha256::digest(fs::read(&path).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), hex)
    };
    fs::read_dir(dir).unwrap().map(|entry| digest(entry.unwrap().path())).collect()
}

fn written(dims: &Dims, seed: u64) -> (tempfile::TempDir, Summary) {
    let dir = tempfile::tempdir().unwrap();
    let summary = write(dir.path(), dims, seed, &mut |_| {}).unwrap();
    (dir, summary)
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_does_not() {
    let (a, _) = written(&Dims::of(Size::Tiny), 7);
    let (b, _) = written(&Dims::of(Size::Tiny), 7);
    let (c, _) = written(&Dims::of(Size::Tiny), 8);
    assert_eq!(digests(a.path()), digests(b.path()));
    let shard = "model-00002-of-00003.safetensors";
    assert_ne!(digests(a.path())[shard], digests(c.path())[shard]);
}

/// The bytes are part of the contract: a recording or an answer made with a seed stays valid.
#[test]
fn the_bytes_of_the_default_seed_are_those_of_every_other_machine() {
    let (dir, summary) = written(&Dims::of(Size::Tiny), DEFAULT_SEED);
    let digests = digests(dir.path());
    let found: Vec<&str> = summary.shards.iter().map(|file| &digests[file][..16]).collect();
    assert_eq!(found, ["55b4a6cac59c6543", "1d7b1ce45d91dc89", "d2c212d31aa2ff3d"]);
}

/// Cases: size, the list of the real tensors, how many there are, and values in all of them.
#[test]
fn the_full_sizes_have_the_tensors_of_the_real_checkpoints() {
    for (size, list, tensors, parameters) in [
        (Size::NineB, "vidi15_9b_tensors.json", 1_423, 10_462_005_312),
        (Size::SevenB, "vidi7b_tensors.json", 1_251, 8_513_418_304),
    ] {
        let dims = Dims::of(size);
        let found = has_the_tensors_of(&dims, &json(&repository("tests/oracle").join(list)));
        assert_eq!(found, (tensors, parameters), "{size}");
    }
}

fn has_the_tensors_of(dims: &Dims, list: &Value) -> (usize, u64) {
    let expected: BTreeMap<String, Vec<u64>> = list["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["name"].as_str().unwrap().to_owned(), serde_json::from_value(t["shape"].clone()).unwrap()))
        .collect();
    let tensors = tensors::list(dims);
    let ours: BTreeMap<String, Vec<u64>> = tensors.iter().map(|t| (t.name.clone(), t.shape.clone())).collect();
    assert_eq!(ours.len(), tensors.len(), "a name stands twice");
    assert_eq!(ours, expected);
    let parameters = tensors.iter().map(|t| t.numel()).sum();
    assert_eq!(Some(parameters), list["totals"]["numel"].as_u64());

    let shards = shards::split(&tensors, dims.shards);
    assert_eq!(shards.len(), dims.shards);
    for shard in &shards {
        let bytes: u64 = shard.tensors.iter().map(|t| t.bytes()).sum();
        assert!((3_000_000_000..6_000_000_000).contains(&bytes), "{}: {bytes}", shard.file);
    }
    (tensors.len(), parameters)
}

#[test]
fn safetensors_reads_what_the_index_promises() {
    let mut dims = Dims::of(Size::Tiny);
    dims.dtype = Dtype::Bf16;
    dims.tied = false;
    let (dir, summary) = written(&dims, 3);
    let index = json(&dir.path().join(shards::INDEX_FILE));
    let files: BTreeMap<&String, Vec<u8>> =
        summary.shards.iter().map(|f| (f, fs::read(dir.path().join(f)).unwrap())).collect();
    let mut bytes = 0;
    for tensor in tensors::list(&dims) {
        let file = index["weight_map"][&tensor.name].as_str().unwrap().to_owned();
        let shard = SafeTensors::deserialize(&files[&file]).unwrap();
        let view = shard.tensor(&tensor.name).unwrap();
        let wide = tensor.name.starts_with("model.mm_rand_pos_");
        assert_eq!(view.dtype(), if wide { StoredDtype::F32 } else { StoredDtype::BF16 }, "{}", tensor.name);
        assert_eq!(view.shape().iter().map(|&d| d as u64).collect::<Vec<_>>(), tensor.shape, "{}", tensor.name);
        let place = view.data().as_ptr() as usize - files[&file].as_ptr() as usize;
        assert!(place.is_multiple_of(tensor.dtype.bytes() as usize), "{} at byte {place}", tensor.name);
        bytes += view.data().len() as u64;
    }
    assert_eq!(index["weight_map"].as_object().unwrap().len(), summary.tensors);
    assert_eq!((bytes, index["metadata"]["total_size"].as_u64()), (summary.weight_bytes, Some(summary.weight_bytes)));
}

/// A tensor longer than a piece, so that pieces and threads meet inside it.
#[test]
fn a_tensor_made_in_pieces_holds_each_value_at_its_place() {
    let mut dims = Dims::of(Size::Tiny);
    dims.vocab = 140_001;
    let (dir, summary) = written(&dims, 5);
    let tensor = tensors::list(&dims).into_iter().find(|t| t.name == "model.embed_tokens.weight").unwrap();
    let file = fs::read(dir.path().join(&summary.shards[0])).unwrap();
    let shard = SafeTensors::deserialize(&file).unwrap();
    let stored = shard.tensor(&tensor.name).unwrap().data().chunks_exact(4);
    assert_eq!(stored.len() as u64, tensor.numel());
    let values = tensor.values(5);
    for (i, bytes) in stored.enumerate() {
        let value = f32::from_le_bytes(bytes.try_into().unwrap());
        assert_eq!(value, values.at(i as u64), "value {i}");
    }
}

/// Each side of `<image>` on its own; the first `<bos>` stays, the others go (MODEL.md 2.4).
fn encode(tokenizer: &Tokenizer, chunks: &Value) -> Vec<u32> {
    let chunks: Vec<String> = serde_json::from_value(chunks.clone()).unwrap();
    let ids = |(n, chunk): (usize, String)| {
        let ids = tokenizer.encode(chunk, true).unwrap().get_ids().to_vec();
        ids[usize::from(n > 0)..].to_vec()
    };
    chunks.into_iter().enumerate().flat_map(ids).collect()
}

#[test]
fn the_tokenizer_gives_the_reference_ids_at_any_vocabulary() {
    let units = json(&repository("tests/golden/units/units.json"));
    let cases = units["tokenisation_with_ckpt_tiny"].as_array().unwrap();
    assert!(cases.len() > 10);
    for vocabulary in [512, 2_000, 256_000] {
        let tokenizer: Tokenizer = tokenizer::json(Family::Gemma2, vocabulary).parse().unwrap();
        assert_eq!(tokenizer.get_vocab_size(true) as u64, vocabulary);
        for case in cases {
            let expected: Vec<u32> = serde_json::from_value(case["text_token_ids"].clone()).unwrap();
            assert_eq!(encode(&tokenizer, &case["chunks"]), expected, "query {}", case["query"]);
            assert_eq!(tokenizer.decode(&expected, true).unwrap(), case["decoded"].as_str().unwrap());
        }
        let last = vocabulary as u32 - 1;
        let name = if vocabulary == 512 { "us".to_owned() } else { format!("<unused_tail{last}>") };
        assert_eq!(tokenizer.id_to_token(last), Some(name));
    }
}

#[test]
fn geometry_and_tokenizer_are_those_of_the_reference_generator() {
    for (size, reference) in [(Size::Tiny, "tied"), (Size::SevenBTiny, "7b")] {
        let (dir, _) = written(&Dims::of(size), 1);
        let reference = repository("tests/golden/checkpoints").join(reference);
        assert_eq!(ModelConfig::read(dir.path()).unwrap(), ModelConfig::read(&reference).unwrap(), "{size}");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            let [ours, theirs] =
                [dir.path(), reference.as_path()].map(|dir| fs::read_to_string(dir.join(file)).unwrap());
            assert_eq!(ours, theirs, "{size}: {file}");
        }
    }
}

#[test]
fn a_directory_with_other_files_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let refused = write(dir.path(), &Dims::of(Size::Tiny), 1, &mut |_| {});
    assert!(matches!(refused, Err(Error::Occupied(_))), "{refused:?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_earlier_demo_model_is_replaced_whole() {
    let (dir, _) = written(&Dims::of(Size::Tiny), 1);
    fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let dims = Dims { shards: 2, ..Dims::of(Size::Tiny) };
    write(dir.path(), &dims, 2, &mut |_| {}).unwrap();
    let mut expected = digests(written(&dims, 2).0.path());
    expected.insert("notes.txt".to_owned(), digests(dir.path())["notes.txt"].clone());
    assert_eq!(digests(dir.path()), expected);
}

#[test]
fn progress_rises_to_the_number_of_bytes_in_the_summary() {
    let dir = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let summary = write(dir.path(), &Dims::of(Size::Tiny), 1, &mut |p| seen.push(p)).unwrap();
    assert!(seen.is_sorted_by_key(|p| p.written_bytes));
    let last = Written { written_bytes: summary.weight_bytes, total_bytes: summary.weight_bytes };
    assert_eq!(seen.last(), Some(&last));
}

#[test]
fn impossible_dimensions_are_refused_before_anything_is_written() {
    let tiny = || Dims::of(Size::Tiny);
    for dims in [
        Dims { vocab: 511, ..tiny() },
        Dims { kv_heads: 3, ..tiny() },
        Dims { head_dim: 7, ..tiny() },
        Dims { shards: 0, ..tiny() },
        Dims { layers: 0, ..tiny() },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let refused = write(dir.path(), &dims, 1, &mut |_| {});
        assert!(matches!(refused, Err(Error::Size(_))), "{dims:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_7b_in_every_small_size_opens_with_the_geometry_that_its_size_says() {
    for (size, head_dim, kernel) in
        [(Size::SevenBTiny, 24, [32, 32, 6, 6]), (Size::SevenBRealdims, 128, [144, 144, 6, 6])]
    {
        let dims = Dims::of(size);
        let (dir, _) = written(&dims, 1);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(checkpoint.config(), &dims.model_config(), "{size}");
        assert_eq!((checkpoint.config().family, checkpoint.config().head_dim), (Family::Mistral, head_dim), "{size}");
        assert_eq!(checkpoint.info(POOL_WEIGHT).unwrap().shape, kernel, "{size}");
        assert_eq!(checkpoint.info("model.layers.0.pre_feedforward_layernorm.weight"), None, "{size}");
        let tokens = json(&dir.path().join("tokenizer_config.json"));
        assert_eq!((&tokens["bos_token"], &tokens["eos_token"]), (&"<s>".into(), &"</s>".into()));
        assert!(json(&dir.path().join("demo_model.json"))["note"].as_str().unwrap().contains("Not Vidi 7B"));
    }
}

/// One of the two files is another checkpoint's: neither is believed.
#[test]
fn a_kernel_that_the_pool_size_does_not_ask_for_is_refused_with_both_figures() {
    let (dir, _) = written(&Dims::of(Size::SevenBTiny), 1);
    let path = dir.path().join("config.json");
    let mut config = json(&path);
    for (pool, taken) in [(9, false), (5, true), (2, false)] {
        config["mm_image_pool_size"] = pool.into();
        fs::write(&path, config.to_string()).unwrap();
        let opened = Checkpoint::open(dir.path()).map(drop);
        assert_eq!(opened.is_ok(), taken, "{pool}: {opened:?}");
        if let Err(refused) = opened {
            let needed = format!("mm_image_pool_size = {pool} needs ceil(27 / {pool}) = {}", 27_usize.div_ceil(pool));
            let said = refused.to_string();
            assert!(said.contains("a kernel of 6 x 6") && said.contains(&needed), "{said}");
        }
    }
}

#[test]
fn a_7bs_tokenizer_has_mistrals_special_tokens_and_reads_what_it_writes() {
    for vocabulary in [512, 2_000, 32_768] {
        let tokenizer: Tokenizer = tokenizer::json(Family::Mistral, vocabulary).parse().unwrap();
        assert_eq!(tokenizer.get_vocab_size(true) as u64, vocabulary);
        for (id, token) in [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (3, "[INST]"), (4, "[/INST]"), (10, "<0x00>")] {
            assert_eq!(tokenizer.token_to_id(token), Some(id), "{token}");
        }
        let text = "[INST] What is at 0.25-0.50?\nA caf\u{e9}[/INST]";
        let ids = tokenizer.encode(text, true).unwrap().get_ids().to_vec();
        assert_eq!((&ids[..2], ids.last()), (&[1, 3][..], Some(&4)));
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), "What is at 0.25-0.50?\nA caf\u{e9}");
        assert!(tokenizer.id_to_token(vocabulary as u32 - 1).is_some());
    }
}
