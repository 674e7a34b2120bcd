use serde_json::json;

use super::*;

fn refused(config: Value) -> Option<String> {
    refused_key(config.as_object().unwrap())
}

#[test]
fn keys_of_other_models_and_of_conversions_are_refused_by_name_value_and_remedy() {
    let mlx = json!({"bits": 4, "group_size": 64});
    let bits = json!({"_load_in_4bit": true, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"});
    for (config, said) in [
        (json!({"model_type": "gemma2"}), ["model_type = \"gemma2\"", "only \"dattn_gemma2\"", "of Vidi 1.5"]),
        (json!({"model_type": "mistral"}), ["= \"mistral\"", "\"dattn_gemma2\" and \"dattn_mistral\"", "of Vidi 7B"]),
        (json!({"model_type": 7}), ["model_type = 7", "\"dattn_gemma2\" and \"dattn_mistral\"", "of Vidi 7B"]),
        (json!({"quantization": mlx}), ["quantization = {\"bits\":4", "MLX", "convert from the original"]),
        (
            json!({"quantization_config": bits}),
            ["quantization_config = {", "bitsandbytes", "convert from the original"],
        ),
        (json!({"quantization_config": {}}), ["quantization_config = {}", "another program", "vidi quantize"]),
        (json!({"mm_input_type": "image"}), ["mm_input_type = \"image\"", "only \"video\"", "of Vidi 1.5"]),
        (json!({"mm_image_aspect_ratio": "pad"}), ["\"pad\"", "only \"resize\"", "of Vidi 1.5"]),
        (json!({"attention_bias": true}), ["attention_bias = true", "only false", "of Vidi 1.5"]),
        (json!({"hidden_activation": "silu"}), ["hidden_activation = \"silu\"", "only \"gelu_pytorch_tanh\"", "Vidi"]),
        (json!({"hidden_act": "gelu"}), ["hidden_act = \"gelu\"", "only \"gelu_pytorch_tanh\"", "Vidi"]),
        (json!({"text_config": {}}), ["text_config = {}", "without this key", "of Vidi 1.5"]),
        (json!({"partial_rotary_factor": 0.5}), ["partial_rotary_factor = 0.5", "only 1:", "of Vidi 1.5"]),
        (json!({"use_bidirectional_attention": true}), ["attention = true", "only false", "of Vidi 1.5"]),
        (
            json!({"mm_vision_config": {"hidden_act": "quick_gelu"}}),
            ["mm_vision_config.hidden_act = \"quick_gelu\"", "only \"gelu_pytorch_tanh\"", "Vidi"],
        ),
        (
            json!({"mm_audio_config": {"activation_function": "relu"}}),
            ["mm_audio_config.activation_function = \"relu\"", "only \"gelu\"", "Vidi"],
        ),
        (
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
            ["rope_scaling.rope_type = \"linear\"", "only \"default\"", "Vidi"],
        ),
        (json!({"rope_scaling": {"type": "dynamic"}}), ["rope_scaling.type = \"dynamic\"", "\"default\"", "Vidi"]),
        (json!({"rope_scaling": {"factor": 8.0}}), ["rope_scaling.factor = 8.0", "without this key", "Vidi"]),
        (json!({"rope_scaling": "linear"}), ["rope_scaling = \"linear\"", "only an object", "Vidi"]),
        (
            json!({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}),
            ["rope_parameters.rope_type = \"yarn\"", "only \"default\"", "Vidi"],
        ),
        (
            json!({"rope_parameters": {"rope_theta": 1e6}, "rope_theta": 1e4}),
            ["rope_parameters.rope_theta = 1000000.0", "10000, as rope_theta itself says", "Vidi"],
        ),
        (json!({"rope_parameters": {"rope_theta": "x"}}), ["rope_theta = \"x\"", "only a number", "Vidi"]),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}}),
            [
                "rope_parameters.full_attention.rope_theta = 1000000.0",
                "only 10000, as",
                "sliding_attention.rope_theta has",
            ],
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {}}}),
            ["rope_parameters.full_attention.rope_theta = 10000.0", "only none, as in", "all layers have one"],
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "linear", "factor": 8.0}}}),
            ["rope_parameters.full_attention.rope_type = \"linear\"", "only \"default\"", "Vidi"],
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}, "rope_theta": 1e4}}),
            ["rope_parameters.rope_theta = 10000.0", "an object for each of", "or one for all"],
        ),
        (
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}, "rope_theta": 1e4}),
            ["rope_parameters.full_attention.rope_theta = 1000000.0", "10000, as rope_theta itself says", "Vidi"],
        ),
        (
            json!({"layer_types": ["full_attention", "sliding_attention"], "num_hidden_layers": 2}),
            ["layer_types = [\"full_attention\"", "by turns, 2 in all", "Vidi"],
        ),
        (json!({"layer_types": ["sliding_attention"]}), ["layer_types = [\"sl", "by turns, 42 in all", "Vidi"]),
    ] {
        let message = refused(config.clone()).unwrap_or_else(|| panic!("{config} is taken"));
        assert!(said.iter().all(|part| message.contains(part)), "{message}");
    }
}

/// A configuration of a Vidi 7B with `key` of this value.
fn seven(key: &str, value: Value) -> Value {
    let mut config = json!({"model_type": "dattn_mistral", "num_hidden_layers": 2});
    config[key] = value;
    config
}

#[test]
fn a_vidi_7b_is_refused_by_keys_of_its_own_and_takes_other_values() {
    let (full, sliding) = (["full_attention"; 2], ["sliding_attention"; 2]);
    for (config, said) in [
        (seven("hidden_act", GELU.into()), ["hidden_act = \"gelu_pytorch_tanh\"", "only \"silu\""]),
        (seven("hidden_activation", GELU.into()), ["hidden_activation = ", "only \"silu\""]),
        (seven("attn_logit_softcapping", 50.into()), ["attn_logit_softcapping = 50", "without this key"]),
        (seven("final_logit_softcapping", 30.into()), ["final_logit_softcapping = 30", "without this key"]),
        (seven("query_pre_attn_scalar", 256.into()), ["query_pre_attn_scalar = 256", "without this key"]),
        (seven("attention_bias", true.into()), ["attention_bias = true", "only false"]),
        (seven("quantization_config", json!({"quant_method": "awq"})), ["(made by awq)", "vidi quantize"]),
        (seven("rope_scaling", json!({"type": "yarn"})), ["rope_scaling.type = \"yarn\"", "only \"default\""]),
        (seven("layer_types", json!(sliding)), ["layer_types = [\"sliding", "\"full_attention\" for each of 2 layers"]),
        (seven("layer_types", json!(LAYERS)), ["layer_types = [\"sliding", "as sliding_window says"]),
        (seven("layer_types", json!(["full_attention"])), ["layer_types = [\"full", "for each of 2 layers"]),
    ] {
        let message = refused(config.clone()).unwrap_or_else(|| panic!("{config} is taken"));
        assert!(said.iter().all(|part| message.contains(part)), "{message}");
    }
    let mut windowed = seven("layer_types", json!(sliding));
    assert!(refused(windowed.clone()).is_some());
    windowed["sliding_window"] = 4096.into();
    assert_eq!(refused(windowed), None);
    for config in [
        seven("hidden_act", SILU.into()),
        seven("layer_types", json!(full)),
        seven("sliding_window", Value::Null),
        seven("rope_parameters", json!({"rope_theta": 1e6, "rope_type": "default"})),
    ] {
        assert_eq!(refused(config.clone()), None, "{config}");
    }
}

#[test]
fn the_values_that_are_computed_are_taken_and_so_are_absent_and_null_ones() {
    for size in config::Size::ALL {
        let real = crate::demo_model::config_json::json(&crate::demo_model::Dims::of(size));
        assert_eq!(refused(serde_json::from_str(&real).unwrap()), None, "{size}");
    }
    assert_eq!(refused(json!({})), None);
    // As transformers 5 writes it.
    let newer = json!({"rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "num_hidden_layers": 3,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_scaling": null});
    assert_eq!(refused(newer), None);
    let base = json!({"rope_theta": 1e4, "rope_type": "default"});
    let by_kind =
        json!({"rope_parameters": {"full_attention": base, "sliding_attention": base, "chunked_attention": null}});
    assert_eq!(refused(by_kind), None);
    assert_eq!(refused(json!({"rope_scaling": {"type": "default"}, "partial_rotary_factor": 1.0})), None);
    for family in Family::ALL {
        let mut null: Map<String, Value> = keys(family).map(|(key, ..)| ((*key).to_owned(), Value::Null)).collect();
        null.insert("model_type".to_owned(), family.model_type().into());
        assert_eq!(refused_key(&null), None);
    }
}

#[test]
fn names_of_conversions_are_refused_and_names_that_nobody_asks_for_are_not() {
    let layer = "model.layers.0.mlp.up_proj.weight";
    for (names, said) in [
        (&[layer, "model.layers.0.mlp.up_proj.scales"][..], "MLX"),
        (&[layer, "model.layers.0.mlp.up_proj.weight.absmax"], "bitsandbytes"),
        (&[layer, "model.layers.0.mlp.up_proj.SCB"], "bitsandbytes"),
        (&["model.layers.0.mlp.up_proj.qweight"], "GPTQ"),
        (&["language_model.model.norm.weight", "vision_tower.x"], "tensor language_model.model.norm.weight"),
    ] {
        let message = refused_name(names.iter().copied()).unwrap_or_else(|| panic!("{names:?} are taken"));
        assert!(message.contains(said) && message.contains("convert from the original"), "{message}");
    }
    assert_eq!(refused_name(["lm_head.weight", layer, "stray"].into_iter()), None);
    assert_eq!(refused_name(std::iter::empty()), None);
}
