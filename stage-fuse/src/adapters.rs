//! The adapters between the towers and the language model (MODEL.md 4, steps 4 to 8, and 5, steps 2 and 3; MODEL-7B.md,
//! "Image adapter" and "Audio adapter").

use candle_core::{DType, Device, Result, Tensor};
use model::checkpoint::{CheckpointError, Weights};
use model::config_json::ModelConfig;
use protocol::plan::{AUDIO_POOL, AudioPlan, FrameGrid, ImagePlan};

use crate::layers::{AdapterLinear, RmsNorm};
use crate::position::PositionEmbedding;

/// Linear layers with exact GELU between them.
struct Projector {
    layers: Vec<AdapterLinear>,
}

impl Projector {
    fn new(config: &ModelConfig, input: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        let (output, model) = (config.hidden_size, w.pp("model"));
        if config.mm_projector_type == "linear" {
            return Ok(Projector { layers: vec![AdapterLinear::new(input, output, &model)?] });
        }
        let depth = config.projector_depth().expect("ModelConfig::check refuses other types. This is a bug.");
        let layer = |i: usize| AdapterLinear::new(if i == 0 { input } else { output }, output, &model.pp(2 * i));
        Ok(Projector { layers: (0..depth).map(layer).collect::<std::result::Result<_, _>>()? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (last, hidden) = self.layers.split_last().expect("a projector has a layer. This is a bug.");
        let mut x = x.clone();
        for layer in hidden {
            x = layer.forward_gelu(&x)?;
        }
        last.forward(&x)
    }
}

/// A convolution of kernel 5 and stride 5 without bias: one matmul row per five rows.
struct AudioPool {
    convolution: AdapterLinear, // [P, A, 5]
}

impl AudioPool {
    fn new(input: usize, output: usize, w: &Weights) -> std::result::Result<Self, CheckpointError> {
        Ok(AudioPool { convolution: AdapterLinear::convolution(input, output, AUDIO_POOL as usize, w)? })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let five = AUDIO_POOL as usize;
        let windows = x
            .reshape((rows / five, five, width))?
            .transpose(1, 2)? // [T, A, 5]
            .reshape((rows / five, width * five))?;
        self.convolution.forward(&windows) // [T, P]
    }
}

/// Position embeddings of a grid's rows and columns, kept for the next batch: most have the same grid.
struct Grid {
    side: [u32; 2],
    pos_h: Tensor, // [h, D]
    pos_w: Tensor, // [w, D]
}

/// All adapters, `model.mm_rand_*`.
pub struct Fuser {
    img_projector: Projector,
    img_norm: RmsNorm,
    aud_pool: AudioPool,
    aud_projector: Projector,
    aud_norm: RmsNorm,
    pos_h: PositionEmbedding,
    pos_w: PositionEmbedding,
    pos_t: PositionEmbedding,
    llm_norm: RmsNorm,
    grid: Option<Grid>,
    frame_grid: FrameGrid,
    image_width: usize,
    audio_width: usize,
    width: usize,
    dtype: DType,
    device: Device,
}

impl Fuser {
    /// Loads `model.mm_rand_*` from weights at the checkpoint's root.
    ///
    /// # Errors
    /// The tensor that is missing or misshapen.
    pub fn new(config: &ModelConfig, weights: &Weights) -> std::result::Result<Self, CheckpointError> {
        let (width, audio_width) = (config.hidden_size, config.audio.d_model);
        let (image_width, pooled_width) = (config.image_cell_width(), config.audio_pool_width());
        // Rows and columns are stretched to the pool's size: 2 of a merge, the grid's own side of a convolution.
        let side = config.mm_image_pool_size as u32;
        let part = |name: &str| weights.pp(format!("model.mm_rand_{name}"));
        Ok(Fuser {
            img_projector: Projector::new(config, image_width, &part("img_projector"))?,
            img_norm: RmsNorm::new(width, &part("img_norm"))?,
            aud_pool: AudioPool::new(audio_width, pooled_width, &part("aud_pool"))?,
            aud_projector: Projector::new(config, pooled_width, &part("aud_projector"))?,
            aud_norm: RmsNorm::new(width, &part("aud_norm"))?,
            pos_h: PositionEmbedding::new(width, side, &part("pos_h"))?,
            pos_w: PositionEmbedding::new(width, side, &part("pos_w"))?,
            pos_t: PositionEmbedding::new(width, config.mm_time_interval, &part("pos_t"))?,
            llm_norm: RmsNorm::new(width, &part("llm_norm"))?,
            grid: None,
            frame_grid: config.image_pool().grid(),
            image_width,
            audio_width,
            width,
            dtype: weights.dtype(),
            device: weights.device().clone(),
        })
    }

    /// The embedding of time.
    pub fn pos_t(&self) -> &PositionEmbedding {
        &self.pos_t
    }

    /// Takes other frequencies for all positions: see [`PositionEmbedding::set_frequencies`].
    pub fn set_frequencies(&mut self, frequencies: &[f32]) {
        for embedding in [&mut self.pos_h, &mut self.pos_w, &mut self.pos_t] {
            embedding.set_frequencies(frequencies.to_vec());
        }
        self.grid = None;
    }

    /// Rule that the grids of frames follow.
    pub fn frame_grid(&self) -> FrameGrid {
        self.frame_grid
    }

    /// Width of a token cell that the image projector takes, W: 4C or C.
    pub fn image_width(&self) -> usize {
        self.image_width
    }

    /// Width of an encoder state that the audio pool takes, A.
    pub fn audio_width(&self) -> usize {
        self.audio_width
    }

    /// Width of a token, D.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The type that they compute in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the adapters compute.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Token cells `offset..offset + n` of a plan, `[n, W]`, to its image tokens `[n, D]`. The rows may start and end
    /// anywhere, also inside a frame.
    ///
    /// `observe` sees `image_projected` `[n, D]`, `pos_h` `[h, D]`, `pos_w` `[w, D]`, `pos_t_image` (of the frames that
    /// the rows belong to), `image_tokens_before_llm_norm` and `image_tokens`.
    ///
    /// # Errors
    /// The device's.
    pub fn image_tokens(
        &mut self,
        features: &Tensor,
        offset: u64,
        plan: &ImagePlan,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let (per_frame, columns) = (plan.tokens_per_frame(), u64::from(plan.grid[1]));
        let places = offset..offset + features.dim(0)? as u64;
        let first_frame = places.start / per_frame;
        let frames = places.end.div_ceil(per_frame) - first_frame;
        let index = |of: &dyn Fn(u64) -> u64| {
            let rows: Vec<u32> = places.clone().map(|place| of(place) as u32).collect();
            Tensor::new(rows, &self.device)
        };
        let row = index(&|place| place % per_frame / columns)?;
        let column = index(&|place| place % columns)?;
        let frame = index(&|place| place / per_frame - first_frame)?;

        let x = self.img_projector.forward(&features.to_dtype(self.dtype)?)?; // [n, D]
        observe("image_projected", &x);
        let pos_t = self.pos_t.rows(first_frame, frames as usize, plan.frames)?; // [frames, D]
        let grid = self.grid(plan.grid)?;
        observe("pos_h", &grid.pos_h);
        observe("pos_w", &grid.pos_w);
        observe("pos_t_image", &pos_t);
        let (pos_h, pos_w) = (grid.pos_h.index_select(&row, 0)?, grid.pos_w.index_select(&column, 0)?);
        let x = (((self.img_norm.forward(&x)? + pos_h)? + pos_w)? + pos_t.index_select(&frame, 0)?)?; // [n, D]
        observe("image_tokens_before_llm_norm", &x);
        let tokens = self.llm_norm.forward(&x)?;
        observe("image_tokens", &tokens);
        Ok(tokens)
    }

    /// Encoder states `offset..offset + n` of a plan, `[n, A]`, to its audio tokens from `offset / 5` on, `[n / 5, D]`.
    /// `offset` is a multiple of 5; a rest of under five rows is dropped.
    ///
    /// `observe` sees `audio_pooled` `[n / 5, P]`, P the width that the pool leaves, then `audio_projected`,
    /// `pos_t_audio`, `audio_tokens_before_llm_norm` and `audio_tokens`, all `[n / 5, D]`.
    ///
    /// # Errors
    /// The device's.
    pub fn audio_tokens(
        &self,
        states: &Tensor,
        offset: u64,
        plan: &AudioPlan,
        observe: &mut dyn FnMut(&str, &Tensor),
    ) -> Result<Tensor> {
        let five = AUDIO_POOL as usize;
        let count = states.dim(0)? / five;
        let states = states.narrow(0, 0, count * five)?.to_dtype(self.dtype)?; // [5T, A]
        let x = self.aud_pool.forward(&states)?; // [T, P]
        observe("audio_pooled", &x);
        let x = self.aud_projector.forward(&x)?;
        observe("audio_projected", &x);
        let pos_t = self.pos_t.rows(offset / AUDIO_POOL, count, plan.tokens)?; // [T, D]
        observe("pos_t_audio", &pos_t);
        let x = (self.aud_norm.forward(&x)? + pos_t)?;
        observe("audio_tokens_before_llm_norm", &x);
        let tokens = self.llm_norm.forward(&x)?;
        observe("audio_tokens", &tokens);
        Ok(tokens)
    }

    fn grid(&mut self, side: [u32; 2]) -> Result<&Grid> {
        if self.grid.as_ref().is_none_or(|grid| grid.side != side) {
            let [h, w] = side;
            self.grid = Some(Grid {
                side,
                pos_h: self.pos_h.rows(0, h as usize, h.into())?,
                pos_w: self.pos_w.rows(0, w as usize, w.into())?,
            });
        }
        Ok(self.grid.as_ref().expect("it was just filled. This is a bug."))
    }
}
