//! The layers that both encoders are made of, as a checkpoint holds them.

use candle_core::{Device, Result, Tensor};

use crate::checkpoint::{CheckpointError, Weights};
use compute::kernels::{self, E4m3Rows, Rows};
use config::MediaProducts;

/// `x W^T + bias`. Its weights are kept as they are multiplied.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    bias: Tensor, // [out]
}

#[derive(Debug)]
enum Weight {
    Dense(Tensor), // [out, in]
    E4m3(E4m3Rows),
}

impl Linear {
    /// `weight` and `bias` of `w`, to be multiplied as `products` says.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(
        input: usize,
        output: usize,
        w: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        Linear::load(&[("weight", output)], w.get("bias", &[output])?, input, w, products)
    }

    /// Projections of the same input on top of each other: matrices and their rows.
    fn load(
        parts: &[(&str, usize)],
        bias: Tensor,
        input: usize,
        w: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        let weight = match products {
            MediaProducts::Dense => Weight::Dense(w.stack(parts, input)?),
            MediaProducts::Fp8 if w.is_survey() => {
                Weight::Dense(w.survey_blocks(parts, input, E4m3Rows::bytes(1, input))?)
            }
            MediaProducts::Fp8 => {
                let rows = E4m3Rows::load(&w.on(Device::Cpu).stack(parts, input)?, w.device());
                Weight::E4m3(rows.map_err(CheckpointError::from_device)?)
            }
        };
        Ok(Linear { weight, bias })
    }

    /// From weights `[out, in]` and a bias `[out]` at hand.
    pub fn dense(weight: Tensor, bias: Tensor) -> Self {
        Linear { weight: Weight::Dense(weight), bias }
    }

    /// What is added to [`product`](Self::product), `[out]`, by whatever reads it next.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Rows `[n, in]`, made ready as this layer is, to `[n, out]`, without the bias.
    ///
    /// # Errors
    /// The device's; rows made ready for another kind of product.
    pub fn product(&self, x: &Rows) -> Result<Tensor> {
        match (x, &self.weight) {
            (Rows::Dense(x), Weight::Dense(weight)) => x.matmul(&weight.t()?),
            (Rows::E4m3(x), Weight::E4m3(weight)) => x.product(weight, None, self.bias.dtype()),
            _ => candle_core::bail!("rows and weights of different kinds. This is a bug."),
        }
    }

    /// The same with the bias.
    ///
    /// # Errors
    /// As [`product`](Self::product).
    pub fn forward(&self, x: &Rows) -> Result<Tensor> {
        match (x, &self.weight) {
            (Rows::Dense(x), Weight::Dense(weight)) => kernels::linear(x, weight, &self.bias),
            (Rows::E4m3(x), Weight::E4m3(weight)) => x.product(weight, Some(&self.bias), self.bias.dtype()),
            _ => candle_core::bail!("rows and weights of different kinds. This is a bug."),
        }
    }

    /// How its rows are made ready.
    fn products(&self) -> MediaProducts {
        match &self.weight {
            Weight::Dense(_) => MediaProducts::Dense,
            Weight::E4m3(_) => MediaProducts::Fp8,
        }
    }
}

/// Which GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// With the error function.
    Exact,
    /// With the hyperbolic tangent.
    Tanh,
}

/// Two layers with a GELU between them.
#[derive(Debug)]
pub struct FeedForward {
    /// To the wide side.
    pub fc1: Linear,
    /// And back.
    pub fc2: Linear,
    /// What lies between them.
    pub gelu: Gelu,
}

impl FeedForward {
    /// `fc1` and `fc2` of `w`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(
        width: usize,
        inner: usize,
        gelu: Gelu,
        w: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        Ok(FeedForward {
            fc1: Linear::new(width, inner, &w.pp("fc1"), products)?,
            fc2: Linear::new(inner, width, &w.pp("fc2"), products)?,
            gelu,
        })
    }

    /// Rows `[n, C]` to the product of `fc2`, without its bias.
    ///
    /// # Errors
    /// The device's.
    pub fn forward(&self, x: &Rows) -> Result<Tensor> {
        let FeedForward { fc1, fc2, gelu } = self;
        if let (Rows::Dense(x), Weight::Dense(weight), Gelu::Tanh) = (x, &fc1.weight, gelu) {
            return fc2.product(&Rows::Dense(kernels::linear_gelu_tanh(x, weight, &fc1.bias)?));
        }
        let h = fc1.product(x)?; // [n, inner]
        fc2.product(&match (fc2.products(), gelu) {
            (MediaProducts::Fp8, Gelu::Exact) => Rows::E4m3(E4m3Rows::gelu_erf(&h, &fc1.bias)?),
            (MediaProducts::Fp8, Gelu::Tanh) => Rows::E4m3(E4m3Rows::gelu_tanh(&h, &fc1.bias)?),
            (MediaProducts::Dense, Gelu::Exact) => Rows::Dense(kernels::bias_gelu_erf(&h, &fc1.bias).map(|()| h)?),
            (MediaProducts::Dense, Gelu::Tanh) => Rows::Dense(kernels::bias_gelu_tanh(&h, &fc1.bias).map(|()| h)?),
        })
    }
}

/// Attention of a sequence's rows to each other.
#[derive(Debug)]
pub struct SelfAttention {
    qkv: Linear, // [3C, C]
    /// Its bias is added by whatever reads the outcome next.
    pub out_proj: Linear,
    heads: usize,
    rows: usize,
}

impl SelfAttention {
    /// `q_proj`, `k_proj`, `v_proj` and `out_proj` of `w`, for sequences of `rows` rows.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(
        width: usize,
        heads: usize,
        rows: usize,
        keys_have_bias: bool,
        w: &Weights,
        products: MediaProducts,
    ) -> std::result::Result<Self, CheckpointError> {
        let biases = [Some("q_proj.bias"), keys_have_bias.then_some("k_proj.bias"), Some("v_proj.bias")];
        let weights = ["q_proj.weight", "k_proj.weight", "v_proj.weight"];
        Ok(SelfAttention {
            qkv: Linear::load(
                &weights.map(|part| (part, width)),
                w.concat(&biases.map(|part| (part, width)))?,
                width,
                w,
                products,
            )?,
            out_proj: Linear::new(width, width, &w.pp("out_proj"), products)?,
            heads,
            rows,
        })
    }

    /// Rows of whole sequences, `[n*rows, C]`, to the product of `out_proj`, `[n*rows, C]`, without its bias.
    ///
    /// # Errors
    /// The device's.
    pub fn forward(&self, x: &Rows) -> Result<Tensor> {
        let qkv = self.qkv.forward(x)?; // [n*rows, 3C]
        let (rows, width) = (qkv.dim(0)?, qkv.dim(1)? / 3);
        let qkv = qkv.reshape((rows / self.rows, self.rows, 3 * width))?;
        let scale = ((width / self.heads) as f64).powf(-0.5);
        let mixed = kernels::attention(&qkv, self.heads, scale as f32)?; // [n, rows, C]
        self.out_proj.product(&Rows::new(&mixed.reshape((rows, width))?, self.out_proj.products())?)
    }
}

/// The parameters of a layer norm; [`kernel`](Self::kernel) applies them.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor, // [C]
    bias: Tensor,   // [C]
    eps: f32,
}

impl LayerNorm {
    /// `weight` and `bias` of `w`.
    ///
    /// # Errors
    /// As [`Weights::get`].
    pub fn new(width: usize, eps: f64, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(LayerNorm { weight: w.get("weight", &[width])?, bias: w.get("bias", &[width])?, eps: eps as f32 })
    }

    /// The kernel with these parameters, its outcome ready for such products.
    pub fn kernel(&self, products: MediaProducts) -> kernels::LayerNorm<'_> {
        kernels::LayerNorm { weight: &self.weight, bias: &self.bias, eps: self.eps, products }
    }
}

/// A layer of an encoder, normed before each of its two parts.
#[derive(Debug)]
pub struct EncoderLayer {
    /// Before attention.
    pub attention_norm: LayerNorm,
    /// Rows to each other.
    pub attention: SelfAttention,
    /// Before the feed-forward part.
    pub feed_forward_norm: LayerNorm,
    /// Each row by itself.
    pub feed_forward: FeedForward,
}

impl EncoderLayer {
    fn products(&self) -> MediaProducts {
        self.feed_forward.fc1.products()
    }

    /// Moves the stream `x` `[n, C]` on by this layer, in place, and gives what `next` makes of it. `normed` is what this
    /// layer's first norm made of it.
    fn forward(
        &self,
        x: &Tensor,
        normed: &Rows,
        limit: Option<f32>,
        next: Option<kernels::LayerNorm<'_>>,
    ) -> Result<Option<Rows>> {
        let attended = self.attention.forward(normed)?;
        let bias = Some(self.attention.out_proj.bias());
        let norm = self.feed_forward_norm.kernel(self.products());
        let normed = norm.after_adding(x, &attended, bias, None)?;
        let (y, bias) = (self.feed_forward.forward(&normed)?, Some(self.feed_forward.fc2.bias()));
        match next {
            Some(next) => next.after_adding(x, &y, bias, limit).map(Some),
            None => kernels::residual_add(x, &y, bias, limit).map(|()| None),
        }
    }
}

/// Moves the stream `x` `[n, C]` on by all layers, in place, held within `limit` after each, and gives what `last` makes of
/// it, in the model's type. `after` hears of each layer: look at the stream at once, the next one overwrites it.
///
/// # Errors
/// The device's.
pub fn encode(
    layers: &[EncoderLayer],
    x: &Tensor,
    limit: Option<f32>,
    last: Option<&LayerNorm>,
    after: &mut dyn FnMut(usize),
) -> Result<Option<Tensor>> {
    let Some(first) = layers.first() else {
        return last.map(|norm| norm.kernel(MediaProducts::Dense).forward(x).map(Rows::dense)).transpose();
    };
    let mut normed = Some(first.attention_norm.kernel(first.products()).forward(x)?);
    for (i, layer) in layers.iter().enumerate() {
        let next = match layers.get(i + 1) {
            Some(next) => Some(next.attention_norm.kernel(next.products())),
            None => last.map(|norm| norm.kernel(MediaProducts::Dense)),
        };
        let rows = normed.take().expect("every layer but the last is followed by a norm. This is a bug.");
        normed = layer.forward(x, &rows, limit, next)?;
        after(i);
    }
    Ok(normed.map(Rows::dense))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feed_forward_part_uses_its_gelu_between_its_products() -> Result<()> {
        let linear = |weight: f32, bias: f32| -> Result<Linear> {
            Ok(Linear::dense(Tensor::new(&[[weight]], &Device::Cpu)?, Tensor::new(&[bias], &Device::Cpu)?))
        };
        // gelu(-1 - 1), times three. The second bias comes later.
        for (gelu, want) in [(Gelu::Tanh, -0.045_402_3), (Gelu::Exact, -0.045_500_3)] {
            let mlp = FeedForward { fc1: linear(1.0, -1.0)?, fc2: linear(3.0, 100.0)?, gelu };
            let y = mlp.forward(&Rows::Dense(Tensor::new(&[[-1f32]], &Device::Cpu)?))?.to_vec2::<f32>()?[0][0];
            assert!((y - 3.0 * want).abs() < 1e-6, "{gelu:?}: {y}");
        }
        Ok(())
    }
}
