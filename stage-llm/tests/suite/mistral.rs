//! The language model of Vidi 7B against the equations of MODEL-7B.md, "Language model", written out one by one.

use std::collections::HashMap;

use crate::fixture::{HIDDEN, Model, random};
use candle_core::{D, DType, Device, Result, Tensor};
use model::config_json::ModelConfig;
use protocol::message::Modality;
use stage_llm::language::cache::{MediaCache, VideoCache};

const PROMPT: [u32; 11] = [1, 400, 401, 402, 108, 390, 391, 392, 393, 394, 395];

/// Weights by name, and the geometry.
struct Plain {
    weights: HashMap<String, Tensor>,
    c: ModelConfig,
}

/// Image or audio tokens and the keys and values that the text reads of them in each layer.
struct Modalities(Vec<Vec<(Tensor, Tensor)>>);

impl Plain {
    fn new(model: &Model) -> Self {
        let weights = candle_core::safetensors::load(model.dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
        Plain { weights, c: model.weights(DType::F32).0 }
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.matmul(&self.weights[&format!("{name}.weight")].t()?)
    }

    fn layer(&self, x: &Tensor, layer: usize, name: &str) -> Result<Tensor> {
        self.linear(x, &format!("model.layers.{layer}.{name}"))
    }

    /// `N(x, w) = w * x * rsqrt(mean(x^2) + eps)`.
    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + self.c.rms_norm_eps)?;
        x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(&self.weights[&format!("{name}.weight")])
    }

    fn layer_norm(&self, x: &Tensor, layer: usize, name: &str) -> Result<Tensor> {
        self.norm(x, &format!("model.layers.{layer}.{name}"))
    }

    fn mlp(&self, x: &Tensor, layer: usize) -> Result<Tensor> {
        let gate = self.layer(x, layer, "mlp.gate_proj")?;
        let sigmoid = (gate.neg()?.exp()? + 1.0)?.recip()?;
        self.layer(&((gate * sigmoid)? * self.layer(x, layer, "mlp.up_proj")?)?, layer, "mlp.down_proj")
    }

    /// Rotary positions of rows `[n, heads * head_dim]`: the halves of a head turned against each other.
    fn rope(&self, x: &Tensor) -> Result<Tensor> {
        let (width, rows) = (self.c.head_dim, x.to_vec2::<f32>()?);
        let turned = rows.iter().enumerate().flat_map(|(at, row)| {
            row.chunks(width).flat_map(move |head| {
                (0..width).map(move |i| {
                    let half = width / 2;
                    let angle = at as f64 * self.c.rope_theta.powf(-((i % half) as f64) / half as f64);
                    let other = if i < half { -head[i + half] } else { head[i - half] };
                    (f64::from(head[i]) * angle.cos() + f64::from(other) * angle.sin()) as f32
                })
            })
        });
        Tensor::from_vec(turned.collect::<Vec<f32>>(), x.shape(), &Device::Cpu)
    }

    /// Softmax attention head by head, query head h to kv head `h / (heads / kv heads)`, without a cap.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
        let (width, group) = (self.c.head_dim, self.c.num_attention_heads / self.c.num_key_value_heads);
        let (n, keys) = (q.dim(0)?, k.dim(0)?);
        let mask = (0..n * keys).map(|i| if causal && i % keys > i / keys { f32::NEG_INFINITY } else { 0.0 });
        let mask = Tensor::from_vec(mask.collect(), (n, keys), &Device::Cpu)?;
        let head = |x: &Tensor, h: usize| x.narrow(1, h * width, width)?.contiguous();
        let heads = (0..self.c.num_attention_heads).map(|h| {
            let scores = (head(q, h)?.matmul(&head(k, h / group)?.t()?)? * (width as f64).powf(-0.5))?;
            let scores = (scores + &mask)?;
            let e = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
            e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.matmul(&head(v, h / group)?)
        });
        Tensor::cat(&heads.collect::<Result<Vec<_>>>()?, 1)
    }

    /// Every layer's keys and values of tokens that see nothing but themselves.
    fn modality(&self, tokens: &Tensor) -> Result<Vec<(Tensor, Tensor)>> {
        let (width, group) = (self.c.head_dim, self.c.num_attention_heads / self.c.num_key_value_heads);
        let mut e = tokens.clone();
        (0..self.c.num_hidden_layers)
            .map(|i| {
                let n = self.layer_norm(&e, i, "input_layernorm")?;
                let (k, v) = (self.layer(&n, i, "self_attn.k_proj")?, self.layer(&n, i, "self_attn.v_proj")?);
                let repeated = (0..self.c.num_attention_heads).map(|h| v.narrow(1, h / group * width, width));
                let repeated = Tensor::cat(&repeated.collect::<Result<Vec<_>>>()?, 1)?;
                e = (&e + self.layer(&repeated, i, "self_attn.o_proj")?)?;
                e = (&e + self.mlp(&self.layer_norm(&e, i, "post_attention_layernorm")?, i)?)?;
                Ok((k, v))
            })
            .collect()
    }

    /// Logits `[L, vocabulary]`.
    fn logits(&self, modalities: &Modalities) -> Result<Tensor> {
        let ids = Tensor::new(&PROMPT, &Device::Cpu)?;
        let mut x = self.weights["model.embed_tokens.weight"].index_select(&ids, 0)?;
        for i in 0..self.c.num_hidden_layers {
            let n = self.layer_norm(&x, i, "input_layernorm")?;
            let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| self.layer(&n, i, &format!("self_attn.{name}")));
            let (q, k, v) = (q?, k?, v?);
            let out = |x: Tensor| self.layer(&x, i, "self_attn.o_proj");
            let mut sum = (&x + out(self.attend(&self.rope(&q)?, &self.rope(&k)?, &v, true)?)?)?;
            for layers in &modalities.0 {
                sum = (sum + out(self.attend(&q, &layers[i].0, &layers[i].1, false)?)?)?;
            }
            x = (&sum + self.mlp(&self.layer_norm(&sum, i, "post_attention_layernorm")?, i)?)?;
        }
        self.linear(&self.norm(&x, "model.norm")?, "lm_head")
    }
}

fn largest(x: &Tensor) -> f32 {
    x.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

#[test]
fn the_layers_compute_what_the_specification_writes() -> Result<()> {
    let checkpoint = Model::mistral();
    let plain = Plain::new(&checkpoint);
    let model = checkpoint.language_model(DType::F32);
    let (image, audio) = ((random(&[40, HIDDEN], 1) * 0.5)?, (random(&[13, HIDDEN], 2) * 0.5)?);
    for modalities in
        [vec![], vec![(Modality::Image, &image)], vec![(Modality::Image, &image), (Modality::Audio, &audio)]]
    {
        let mut video = VideoCache::default();
        for &(modality, tokens) in &modalities {
            let count = tokens.dim(0)? as u64;
            let mut cache = MediaCache::new(model.geometry(), count, model.device())?;
            cache.claim(0..count);
            *match modality {
                Modality::Image => &mut video.image,
                Modality::Audio => &mut video.audio,
            } = Some(cache);
            model.absorb(modality, tokens, 0, &video, &mut ())?;
        }
        let mut text = model.text_cache(PROMPT.len())?;
        let got = model.prefill(&PROMPT, &mut text, &video, &mut ())?;
        let of = modalities.iter().map(|(_, tokens)| plain.modality(tokens)).collect::<Result<Vec<_>>>()?;
        let want = plain.logits(&Modalities(of))?.get(PROMPT.len() - 1)?;
        let off = largest(&(got - &want)?) / largest(&want);
        assert!(off < 2e-6, "{} modalities: {off}", modalities.len());
    }
    Ok(())
}
