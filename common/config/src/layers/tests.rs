//! Tests of the layers.

use super::*;

fn told(name: &str) -> String {
    Config::load(None, [(name.to_owned(), "x".to_owned())], &[]).unwrap_err()
}

#[test]
fn a_misspelt_section_is_refused_with_the_name_that_was_meant() {
    assert!(told("VIDI_BUSS_URL").contains("Did you mean VIDI_BUS_URL?"), "{}", told("VIDI_BUSS_URL"));
    assert!(told("VIDI_LM_KV").contains("Did you mean VIDI_LLM_KV?"), "{}", told("VIDI_LM_KV"));
    assert!(told("VIDI_STAT").contains("Did you mean VIDI_STATE?"), "{}", told("VIDI_STAT"));
    let far = told("VIDI_ELSEWHERE_URL");
    assert!(!far.contains("Did you mean") && far.contains("bus, ") && far.contains("VIDI_CONFIG"), "{far}");
}

#[test]
fn a_misspelt_key_is_refused_and_what_is_not_ours_is_nobodys_business() {
    assert!(told("VIDI_BUS_URLL").contains("urll"), "{}", told("VIDI_BUS_URLL"));
    let others = ["PATH", "VIDIO_BUS_URL", "VIDI_STATE", "VIDI_NATS_SERVER"];
    let env = others.map(|name| (name.to_owned(), "x".to_owned()));
    assert_eq!(Config::load(None, env, &[]).unwrap(), Config::default());
}

#[test]
fn the_checkpoint_has_a_short_name_below_the_long_one_and_below_a_flag() {
    let short = ("VIDI_MODEL".to_owned(), "7".to_owned());
    let long = ("VIDI_MODEL_DIR".to_owned(), "long".to_owned());
    let dir = |env: &[(String, String)], set: &[&str]| {
        let set: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
        Config::load(None, env.to_vec(), &set).unwrap().model.dir
    };
    assert_eq!(dir(std::slice::from_ref(&short), &[]), Path::new("7"));
    assert_eq!(dir(&[long.clone(), short.clone()], &[]), Path::new("long"));
    assert_eq!(dir(&[short, long], &["model.dir=flag"]), Path::new("flag"));
}

#[test]
fn an_empty_variable_is_not_set() {
    let names = ["BUS_URL", "BUS_ACK_WAIT_S", "BUS_PASSWORD_FILE", "MODEL", "MODEL_WEIGHTS", "DECODE_MEDIA_ROOTS"];
    let env = names.map(|name| (format!("{PREFIX}{name}"), String::new()));
    assert_eq!(Config::load(None, env, &[]).unwrap(), Config::default());
    // Nor is it the way to empty what a layer below has.
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[bus]\nurl = \"nats://here\"\n[decode]\ndump = \"\"\n").unwrap();
    let config = Config::load(Some(file.path()), [("VIDI_BUS_URL".to_owned(), String::new())], &[]).unwrap();
    assert_eq!((config.bus.url.exposed(), config.decode.dump), ("nats://here", None));
}

#[test]
fn of_two_keys_that_say_the_same_thing_the_upper_layer_has_its_own() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let model = |text: &str, env: &[(&str, &str)], set: &[&str]| {
        std::fs::write(file.path(), text).unwrap();
        let env: Vec<_> = env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let set: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
        Config::load(Some(file.path()), env, &set).map(|c| (c.model.dir, c.model.weights.map(|w| w.to_string())))
    };
    let (dir, weights) = ("[model]\ndir = \"a\"\n", "[model]\nweights = \"random:tiny\"\n");
    let of_dir = |dir: &str| Ok((dir.into(), None));
    let random = Ok(("".into(), Some("random:tiny".to_owned())));
    assert_eq!(model(dir, &[], &["model.weights=random:tiny"]), random);
    assert_eq!(model(dir, &[("VIDI_MODEL_WEIGHTS", "random:tiny")], &[]), random);
    assert_eq!(model(weights, &[("VIDI_MODEL", "b")], &[]), of_dir("b"));
    assert_eq!(model("", &[("VIDI_MODEL_WEIGHTS", "random:tiny")], &["model.dir=c"]), of_dir("c"));
    assert_eq!(model(dir, &[("VIDI_MODEL_WEIGHTS", "")], &[]), of_dir("a"));
    for env in [&[("VIDI_MODEL", "b"), ("VIDI_MODEL_WEIGHTS", "random:tiny")][..], &[]] {
        let set: &[&str] = if env.is_empty() { &["model.dir=c", "model.weights=random:tiny"] } else { &[] };
        assert!(model("", env, set).unwrap_err().contains("exclude each other"));
    }
    std::fs::write(file.path(), "[bus]\npassword = \"p\"\n").unwrap();
    let config = Config::load(Some(file.path()), [("VIDI_BUS_PASSWORD_FILE".to_owned(), "f".to_owned())], &[]);
    assert!(config.unwrap().bus.password.is_empty());
}

#[test]
fn paths_that_are_not_utf_8_are_merged_shown_and_read_again() {
    let odd = |text: &str| file_uri::path(text);
    let mut config = Config::default();
    config.model.dir = odd("file:///m/%FF a");
    config.decode.media_roots = vec![odd("file:///v/%E9"), "/plain".into()];
    (config.decode.dump, config.llm.quantized) = (Some(odd("file:rel/%FE")), Some("q8".into()));
    (config.http.spool, config.bus.nkey_file) = (Some(odd("file:///%FF")), Some(odd("file:///k/%FF{stage}/{stage}")));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.exposed_toml()).unwrap();
    assert_eq!(Config::merged(file.path()).unwrap(), config);
    assert!(config.to_toml().contains("dir = \"file:///m/%FF%20a\""), "{}", config.to_toml());
    assert_eq!(config.bus.of_role("llm").nkey_file, Some(odd("file:///k/%FFllm/llm")));
}

#[test]
fn what_was_merged_is_read_as_it_was_written() {
    let bus = ["bus.password=12345", "bus.url=nats://u:geheim@here:1"];
    let set = ["llm.kv=q4", "budgets.vision=7", "decode.media_roots=[\"/a\"]"].iter().chain(&bus);
    let config = Config::load(None, [], &set.map(|&s| s.to_owned()).collect::<Vec<_>>()).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.exposed_toml()).unwrap();
    let merged = Config::merged(file.path()).unwrap();
    assert_eq!(merged, config);
    assert_eq!((merged.bus.password.exposed(), merged.bus.url.exposed()), ("12345", "nats://u:geheim@here:1"));
    for shown in [config.to_toml(), format!("{config:?}")] {
        assert!(!shown.contains("12345") && !shown.contains("geheim") && shown.contains("here:1"), "{shown}");
    }
}

#[test]
fn servers_are_named_by_a_text_or_a_list_in_every_layer() {
    let both = "nats://u:p@a:1,nats://u:p@b:2";
    let list = r#"["nats://u:p@a:1", "nats://u:p@b:2"]"#;
    let file = tempfile::NamedTempFile::new().unwrap();
    for value in [format!("\"{both}\""), list.to_owned()] {
        std::fs::write(file.path(), format!("[bus]\nurl = {value}\n")).unwrap();
        assert_eq!(Config::load(Some(file.path()), [], &[]).unwrap().bus.url.exposed(), both);
    }
    for value in [both, list] {
        let env = [("VIDI_BUS_URL".to_owned(), value.to_owned())];
        assert_eq!(Config::load(None, env, &[]).unwrap().bus.url.exposed(), both);
        let set = Config::load(Some(file.path()), [], &[format!("bus.url={value}")]).unwrap();
        assert_eq!(set.bus.url.exposed(), both);
        std::fs::write(file.path(), set.exposed_toml()).unwrap();
        assert_eq!(Config::merged(file.path()).unwrap(), set);
    }
    let said = Config::load(None, [], &["bus.url=[]".to_owned()]).unwrap_err();
    assert!(said.contains("is empty"), "{said}");
}

#[test]
fn no_mistake_shows_a_password() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let wrong = [
        "password = 12345",
        "passwort = \"12345\"",
        "url = \"nats://u:12345@here",
        "url = [\"nats://u:12345@here\", 12345]",
        "url = [\"nats://u:12345,@here\"]",
        "password = \"12345\" x",
    ];
    for line in wrong {
        std::fs::write(file.path(), format!("[bus]\n{line}\n")).unwrap();
        let said = Config::load(Some(file.path()), [], &[]).unwrap_err();
        assert!(!said.contains("12345") && said.contains("line 2"), "{said}");
    }
    for set in ["url=nats://u:12345@here", "nats://u:12345@here", "password=12345", "bus.passwort=12345"] {
        let said = Config::load(None, [], &[set.to_owned()]).unwrap_err();
        assert!(!said.contains("12345"), "{said}");
    }
}

#[test]
fn names_below_a_key_are_laid_over_each_other_one_by_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = "[placement]\nvision = \"cuda:0,cuda:1\"\n[placement.card_bytes]\n\"cuda:0\" = 1\n\"cuda:1\" = 2\n";
    std::fs::write(file.path(), text).unwrap();
    let env = |value: &str| [("VIDI_PLACEMENT_CARD_BYTES".to_owned(), value.to_owned())];
    let set = ["placement.card_bytes.cuda:1=5".to_owned(), "placement.card_bytes.\"cpu\"=6".to_owned()];
    let config = Config::load(Some(file.path()), env("{ \"cuda:1\" = 3, \"cuda:2\" = 4 }"), &set).unwrap();
    let caps: Vec<String> = config.placement.card_bytes.iter().map(|(device, n)| format!("{device} {n}")).collect();
    assert_eq!(caps, ["cuda:0 1", "cuda:1 5", "cuda:2 4", "cpu 6"]);
    std::fs::write(file.path(), config.exposed_toml()).unwrap();
    assert_eq!(Config::merged(file.path()).unwrap(), config);
    for wrong in ["placement.vision.x=cpu", "llm.kv.x=q4", "placement.card_bytes=5"] {
        assert!(Config::load(None, [], &[wrong.to_owned()]).is_err(), "{wrong}");
    }
}
