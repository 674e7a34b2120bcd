use compute::kernels::Activation;
use serde_json::json;

use super::*;

/// A Vidi 7B that states what it has to, and nothing else.
const SEVEN: &str = r#"{"model_type": "dattn_mistral", "mm_image_pool_size": 5, "mm_time_interval": 10000}"#;

#[test]
fn an_end_token_that_the_configuration_does_not_name_is_told_with_both_values() {
    for (json, end_tokens, told) in [
        ("{}", Some(&[107][..]), None),
        ("{}", None, None),
        (r#"{"eos_token_id": 107}"#, Some(&[107]), None),
        (r#"{"eos_token_id": 107}"#, Some(&[1, 107]), None),
        (r#"{"eos_token_id": null}"#, Some(&[1]), None),
        (r#"{"eos_token_id": 107}"#, Some(&[1]), Some(["eos_token_id = [107]", "llm.end_tokens is [1]"])),
        (r#"{"eos_token_id": [1, 107]}"#, None, Some(["eos_token_id = [1, 107]", "llm.end_tokens is [107]"])),
        ("{}", Some(&[1, 2]), Some(["eos_token_id = [107]", "llm.end_tokens is [1, 2]"])),
        (SEVEN, None, None),
        (SEVEN, Some(&[2, 107]), None),
        (SEVEN, Some(&[107]), Some(["eos_token_id = [2]", "llm.end_tokens is [107]"])),
    ] {
        let config: ModelConfig = serde_json::from_str(json).unwrap();
        let warning = config.end_tokens_warning(end_tokens);
        match told {
            None => assert_eq!(warning, None, "{json}"),
            Some(parts) => {
                assert!(parts.iter().all(|part| warning.as_ref().unwrap().contains(part)), "{warning:?}")
            }
        }
    }
    let wrong = serde_json::from_str::<ModelConfig>(r#"{"eos_token_id": "<eos>"}"#).unwrap_err();
    assert!(wrong.to_string().contains("eos_token_id is a token id"), "{wrong}");
}

#[test]
fn keys_are_put_over_the_defaults_of_the_family_that_model_type_names() {
    let seven = |more: serde_json::Value| {
        let mut keys: serde_json::Value = serde_json::from_str(SEVEN).unwrap();
        keys.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value::<ModelConfig>(keys).unwrap()
    };
    let (nine, plain) = (ModelConfig::of(Family::Gemma2), ModelConfig::of(Family::Mistral));
    assert_eq!(serde_json::from_str::<ModelConfig>("{}").unwrap(), nine);
    assert_eq!(seven(json!({})), plain);
    assert_eq!(seven(json!({"head_dim": null, "sliding_window": null, "mm_projector_type": null})), plain);
    assert_eq!(seven(json!({"sliding_window": 512})), ModelConfig { sliding_window: Some(512), ..plain.clone() });
    assert_eq!(
        seven(json!({"rope_parameters": {"rope_theta": 1e4}})),
        ModelConfig { rope_theta: 1e4, ..plain.clone() }
    );
    let kinds = json!({"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}});
    assert_eq!(seven(json!({"rope_parameters": kinds})), ModelConfig { rope_theta: 1e4, ..plain.clone() });
    let narrow = seven(json!({"hidden_size": 2048}));
    assert_eq!((narrow.head_dim, narrow.query_pre_attn_scalar), (64, 64.0));
    let stated = seven(json!({"hidden_size": 2048, "head_dim": 128}));
    assert_eq!((stated.head_dim, stated.query_pre_attn_scalar), (128, 128.0));
    let towers = seven(json!({"mm_vision_config": {"hidden_size": 32}, "tie_word_embeddings": true}));
    let vision = VisionConfig { hidden_size: 32, ..VisionConfig::default() };
    assert_eq!(towers, ModelConfig { vision, tie_word_embeddings: true, ..plain.clone() });
    for config in [nine, plain] {
        assert_eq!(config.check(), Ok(()));
        assert_eq!(serde_json::from_value::<ModelConfig>(serde_json::to_value(&config).unwrap()).unwrap(), config);
    }
}

#[test]
fn what_cannot_be_read_or_computed_is_told_by_key_value_and_what_to_do() {
    let seven = |key: &str, value: serde_json::Value| {
        let mut keys: serde_json::Value = serde_json::from_str(SEVEN).unwrap();
        keys[key] = value;
        keys
    };
    for (keys, said) in [
        (json!({"hidden_size": "wide"}), ["hidden_size = \"wide\" cannot be read", "expected usize"]),
        (json!({"sliding_window": null}), ["sliding_window = null", "a number of tokens"]),
        (json!({"mm_image_pool_size": 5}), ["mm_image_pool_size = 5", "must be 2"]),
        (json!({"mm_audio_pool_size": 4}), ["mm_audio_pool_size = 4", "must be 5"]),
        (json!({"model_type": "mistral"}), ["model_type = \"mistral\"", "dattn_mistral"]),
        (seven("mm_image_pool_size", json!(null)), ["mm_image_pool_size is not there", "add it"]),
        (seven("mm_time_interval", json!(null)), ["mm_time_interval is not there", "add it"]),
        (seven("mm_image_pool_size", json!(1)), ["mm_image_pool_size = 1", "2 to 27"]),
        (seven("mm_image_pool_size", json!(28)), ["mm_image_pool_size = 28", "2 to 27"]),
        (seven("num_attention_heads", json!(24)), ["hidden_size = 4096 is not a multiple", "num_attention_heads = 24"]),
        (seven("mm_vision_config", json!({"image_size": []})), ["mm_vision_config = {\"image_size\":[]}", "usize"]),
    ] {
        let read = serde_json::from_value::<ModelConfig>(keys.clone()).map_err(|e| e.to_string());
        let wrong = read.and_then(|config| config.check()).unwrap_err();
        assert!(said.iter().all(|part| wrong.contains(part)), "{keys}: {wrong}");
    }
}

#[test]
fn what_differs_between_the_families_follows_from_the_geometry() {
    let [nine, seven] = Family::ALL.map(ModelConfig::of);
    assert_eq!((nine.norm_offset(), nine.activation(), nine.post_norms()), (1.0, Activation::GeluTanh, true));
    assert_eq!((seven.norm_offset(), seven.activation(), seven.post_norms()), (0.0, Activation::Silu, false));
    assert_eq!((nine.embedding_scale(), seven.embedding_scale()), (Some(3584f64.sqrt()), None));
    assert_eq!([nine.window(0), nine.window(1), seven.window(0), seven.window(1)], [Some(4096), None, None, None]);
    let windowed = ModelConfig { sliding_window: Some(64), ..seven.clone() };
    assert_eq!([windowed.window(0), windowed.window(1)], [Some(64); 2]);
    assert_eq!((nine.image_pool(), nine.image_cell_width(), nine.audio_pool_width()), (ImagePool::Merge, 4608, 3584));
    let pools: Vec<ImagePool> =
        [5, 2, 9, 14, 27].map(|size| ModelConfig { mm_image_pool_size: size, ..seven.clone() }.image_pool()).into();
    let expected = [(6, 5), (14, 2), (3, 9), (2, 14), (1, 27)];
    assert_eq!(pools, expected.map(|(kernel, side)| ImagePool::Convolution { kernel, side }));
    assert_eq!((seven.image_cell_width(), seven.audio_pool_width()), (1152, 1280));
    // Mistral's missing head is told as missing; Gemma's is the embedding.
    assert_eq!([nine.untied(true), seven.untied(true), seven.untied(false)], [false, true, true]);
    let untied = ModelConfig { tie_word_embeddings: false, ..nine };
    assert_eq!([untied.untied(true), untied.untied(false)], [true, false]);
}
