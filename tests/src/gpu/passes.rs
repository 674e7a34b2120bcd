//! Time of one pass of each encoder by how much goes through it together, beside the floor of its matmuls on this GPU: what
//! `audio.batch` and `vision.batch` are chosen by.

use std::process::ExitCode;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use compute::Compute;
use compute::kernels::bench::seconds;
use config::Config;
use model::checkpoint::{Checkpoint, Weights};
use model::config_json::ModelConfig;
use protocol::error::StageName;
use protocol::memory;
use protocol::plan::{FRAME_SIDE, WINDOW_SAMPLES};
use runtime::process::ConfigArgs;
use stage_audio::{LogMel, WhisperEncoder};

use super::floor::{Ceilings, Encoder};

/// Arguments of the measurement.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Numbers of windows of 30 s that pass the audio encoder together.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    windows: Vec<usize>,
    /// Numbers of frames that pass the vision tower together.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32])]
    frames: Vec<usize>,
}

/// Prints a row for each encoder and number. Exit status: 0, or 1 if something fails.
pub fn run(args: &Arguments, config: &ConfigArgs) -> ExitCode {
    let outcome =
        config.load().map_err(|fatal| anyhow::anyhow!("{}", fatal.1)).and_then(|config| measure(args, &config));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpu_bench passes: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Arguments, config: &Config) -> anyhow::Result<()> {
    // Before this process holds memory of the GPU. A CPU has no floor.
    let on_gpu = config.compute.cuda_ordinal().is_some();
    let ceilings = on_gpu.then(|| Ceilings::of(&config.compute.device)).transpose()?;
    let checkpoint = std::sync::Arc::new(Checkpoint::configured(&config.model)?);
    let model = checkpoint.config().clone();
    let compute = Compute::open(&config.compute, None)?;
    let products = compute.media_products;
    let weights = Weights::new(checkpoint, compute.dtype, compute.device.clone());
    let table = Table { model: &model, config, ceilings, device: &compute.device };
    println!("| pass | ms | ms to launch | ms each | floor each | memory MB | planned MB |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    if !args.windows.is_empty() {
        let encoder = WhisperEncoder::new(&model, &weights, products)?;
        let mel = LogMel::new(model.audio.num_mel_bins);
        let pcm: Vec<i16> = (0..WINDOW_SAMPLES).map(|i| ((i * i / 97 + i * 13) % 20_011) as i16 - 10_000).collect();
        let begun = Instant::now();
        let window = mel.window(&pcm);
        println!("| mel of 1 window, on the host | {:.2} | | | | | |", begun.elapsed().as_secs_f64() * 1e3);
        for &n in &args.windows {
            let mels = mel.upload(vec![window.as_slice(); n], &compute.device)?; // [n, mels, 3000]
            table.row(Encoder::Audio, n, || encoder.forward(&mels, &mut |_, _| ()).map(drop))?;
        }
    }
    if !args.frames.is_empty() {
        let (encoder, pool) = stage_vision::load(&model, &weights, products)?;
        let side = pool.grid().side(1) as usize;
        for &n in &args.frames {
            let frames = Tensor::zeros((n, FRAME_SIDE, FRAME_SIDE, 3), DType::U8, &compute.device)?;
            let pass = || pool.cells(&encoder.forward(&frames, &mut |_, _| ())?, side).map(drop);
            table.row(Encoder::Vision, n, pass)?;
        }
    }
    Ok(())
}

/// What all rows have in common.
struct Table<'a> {
    model: &'a ModelConfig,
    config: &'a Config,
    ceilings: Option<Ceilings>,
    device: &'a Device,
}

impl Table<'_> {
    /// Measures a pass of `n` windows or frames, and prints its row.
    fn row(&self, encoder: Encoder, n: usize, mut pass: impl FnMut() -> candle_core::Result<()>) -> anyhow::Result<()> {
        let held = memory::usage().used_bytes;
        pass()?;
        self.device.synchronize()?;
        let begun = Instant::now();
        pass()?;
        let launch_ms = begun.elapsed().as_secs_f64() * 1e3;
        self.device.synchronize()?;
        // A pass on a CPU may take minutes: this one is enough.
        let ms = match self.device.is_cpu() {
            true => launch_ms,
            false => 1e3 * seconds(self.device, &mut pass)?,
        };
        let each = n.max(1) as f64;
        let products = self.config.compute.media_products;
        let floor = self.ceilings.map(|c| format!("{:.2}", 1e3 * encoder.floor_s(self.model, products, &c)));
        // The most that was ever held: rows of growing numbers show what each takes.
        let peak = memory::usage().peak_bytes.saturating_sub(held) as f64 / 1e6;
        println!(
            "| {n} {} | {ms:.2} | {launch_ms:.2} | {:.2} | {} | {peak:.0} | {:.0} |",
            encoder.units(),
            ms / each,
            floor.unwrap_or_default(),
            self.planned_bytes(encoder.stage(), n)? as f64 / 1e6
        );
        Ok(())
    }

    /// Bytes of activations that the stage plans for passes of so many.
    fn planned_bytes(&self, stage: StageName, n: usize) -> anyhow::Result<u64> {
        let mut config = self.config.clone();
        (config.audio.batch, config.vision.batch) = (n, n);
        let footprint = match stage {
            StageName::Audio => stage_audio::open::footprint(&config, self.model)?,
            _ => stage_vision::open::footprint(&config, self.model)?,
        };
        Ok(footprint.activation_bytes)
    }
}
