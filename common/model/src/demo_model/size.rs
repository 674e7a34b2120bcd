//! The dimensions of a checkpoint, and the sizes that have a name.

use crate::config_json::Family;
use config::Size;

/// Type of the stored weights. The position MLPs (`model.mm_rand_pos_*`) are float32 in any case, as the official
/// loader keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// As safetensors writes it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::Bf16 => "BF16",
        }
    }
}

/// The dimensions that a checkpoint's tensors and `config.json` follow from.
#[derive(Clone, Debug, PartialEq)]
pub struct Dims {
    /// Model whose layout it has.
    pub family: Family,
    /// Width of the language model.
    pub hidden: u64,
    /// Its decoder layers.
    pub layers: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of a head; even.
    pub head_dim: u64,
    /// Width of the feed-forward layer.
    pub inter: u64,
    /// Rows of the embedding; at least the 512 entries of the tokenizer.
    pub vocab: u64,
    /// Keys that a sliding layer sees; none where no layer slides.
    pub window: Option<u64>,
    /// Scores are multiplied by this to the power of -1/2; Mistral's is the width of a head.
    pub query_scalar: u64,
    /// Soft cap of attention scores, if there is one.
    pub softcap: Option<f64>,
    /// Soft cap of logits, if there is one.
    pub final_softcap: Option<f64>,
    /// `mm_image_pool_size`.
    pub image_pool: u64,
    /// Whether the output head is the embedding; otherwise `lm_head.weight` is stored.
    pub tied: bool,
    /// The vision tower.
    pub vision: Tower,
    /// The audio tower.
    pub audio: Tower,
    /// Type of the stored weights.
    pub dtype: Dtype,
    /// Number of safetensors files.
    pub shards: usize,
}

/// Dimensions of an encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tower {
    /// Width.
    pub hidden: u64,
    /// Layers, all of them stored.
    pub layers: u64,
    /// Attention heads.
    pub heads: u64,
    /// Width of the feed-forward layer.
    pub inter: u64,
}

impl Tower {
    const fn new(hidden: u64, layers: u64, heads: u64, inter: u64) -> Tower {
        Tower { hidden, layers, heads, inter }
    }
}

impl Dims {
    /// The dimensions behind a name; `tiny` and `realdims` are the presets of the same names of `tests/oracle/vidi_oracle.py`,
    /// and those of Vidi 7B its `tiny-7b` and `realdims-7b`.
    pub fn of(size: Size) -> Dims {
        match size {
            Size::Tiny => tiny(),
            Size::Realdims => realdims(),
            Size::NineB => nine_b(),
            Size::SevenBTiny => seven_b_tiny(),
            Size::SevenBRealdims => seven_b_realdims(),
            Size::SevenB => seven_b(),
        }
    }

    /// Says what makes these dimensions impossible.
    pub fn check(&self) -> Result<(), String> {
        let window = self.window.unwrap_or(1);
        let positive = [self.hidden, self.layers, self.heads, self.kv_heads, self.inter, window, self.query_scalar];
        if positive.contains(&0) || self.shards == 0 {
            return Err("every dimension must be at least 1".to_owned());
        }
        if self.vocab < super::tokenizer::LEARNED_VOCABULARY {
            let least = super::tokenizer::LEARNED_VOCABULARY;
            return Err(format!("a vocabulary of {}: the tokenizer has {least} entries", self.vocab));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(format!("{} heads do not share {} key/value heads evenly", self.heads, self.kv_heads));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) || !self.hidden.is_multiple_of(2) {
            return Err("head width and hidden width must be even: rotary and position angles come in pairs".to_owned());
        }
        for (name, tower) in [("vision", &self.vision), ("audio", &self.audio)] {
            if tower.layers == 0 || tower.inter == 0 || tower.heads == 0 || !tower.hidden.is_multiple_of(tower.heads) {
                return Err(format!("the {name} tower has {} heads of a width of {}", tower.heads, tower.hidden));
            }
        }
        if self.audio.hidden < 4 || !self.audio.hidden.is_multiple_of(2) {
            return Err(
                "the audio tower's width must be even and at least 4: its positions are sines and cosines".to_owned()
            );
        }
        Ok(())
    }
}

fn tiny() -> Dims {
    Dims {
        family: Family::Gemma2,
        hidden: 64,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 24,
        inter: 128,
        vocab: 512,
        window: Some(16),
        query_scalar: 20,
        softcap: Some(10.0),
        final_softcap: Some(30.0),
        image_pool: 2,
        tied: true,
        vision: Tower::new(32, 3, 2, 64),
        audio: Tower::new(32, 2, 2, 64),
        dtype: Dtype::F32,
        shards: 3,
    }
}

fn realdims() -> Dims {
    Dims {
        hidden: 256,
        head_dim: 256,
        inter: 512,
        window: Some(4096),
        query_scalar: 256,
        softcap: Some(50.0),
        vision: Tower::new(144, 3, 2, 272),
        audio: Tower::new(128, 2, 2, 256),
        ..tiny()
    }
}

fn nine_b() -> Dims {
    Dims {
        family: Family::Gemma2,
        hidden: 3584,
        layers: 42,
        heads: 16,
        kv_heads: 8,
        head_dim: 256,
        inter: 14336,
        vocab: 256_000,
        window: Some(4096),
        query_scalar: 256,
        softcap: Some(50.0),
        final_softcap: Some(30.0),
        image_pool: 2,
        tied: true,
        vision: Tower::new(1152, 27, 16, 4304),
        audio: Tower::new(1280, 32, 20, 5120),
        dtype: Dtype::Bf16,
        shards: 5,
    }
}

fn seven_b_tiny() -> Dims {
    Dims {
        family: Family::Mistral,
        layers: 3,
        heads: 8,
        head_dim: 24,
        window: None,
        query_scalar: 24,
        softcap: None,
        final_softcap: None,
        image_pool: 5,
        tied: false,
        audio: Tower::new(48, 2, 2, 64),
        ..tiny()
    }
}

fn seven_b_realdims() -> Dims {
    Dims {
        hidden: 256,
        layers: 4,
        head_dim: 128,
        inter: 512,
        query_scalar: 128,
        vision: Tower::new(144, 3, 2, 272),
        audio: Tower::new(128, 2, 2, 256),
        ..seven_b_tiny()
    }
}

fn seven_b() -> Dims {
    Dims {
        hidden: 4096,
        layers: 32,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        inter: 14336,
        vocab: 32_768,
        query_scalar: 128,
        vision: Tower::new(1152, 27, 16, 4304),
        audio: Tower::new(1280, 32, 20, 5120),
        dtype: Dtype::Bf16,
        shards: 4,
        ..seven_b_tiny()
    }
}
