//! What a stage will hold, in bytes, known before it loads one (ARCHITECTURE.md, "Budgets").

use std::fmt;

use crate::checkpoint::Need;
use compute::Compute;
use config::ComputeConfig;
use protocol::bytes::Bytes;
use protocol::error::{ErrorKind, JobError, StageName};

/// What a memory pool takes beyond what is asked of it: it grows in pieces of 32 MiB, and what was freed in one size does
/// not always serve another.
const POOL_SLACK_BYTES: u64 = 128 << 20;

/// Memory that a stage holds whatever the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of the weights as they are kept.
    pub weights_bytes: u64,
    /// Upper bound of what one pass through the model holds besides.
    pub activation_bytes: u64,
    /// Bytes of the CUDA context with its modules and cuBLAS; 0 on the CPU.
    pub context_bytes: u64,
}

impl Footprint {
    /// The footprint of what loading asks for and the model's own bound of its activations.
    pub fn new(needs: &[Need], activation_bytes: u64, compute: &ComputeConfig) -> Self {
        let on_gpu = compute.cuda_ordinal().is_some();
        let context_bytes = if on_gpu { compute.context_bytes } else { 0 };
        let activation_bytes = activation_bytes + if on_gpu { POOL_SLACK_BYTES } else { 0 };
        Footprint { weights_bytes: needs.iter().map(|n| n.bytes).sum(), activation_bytes, context_bytes }
    }

    /// The whole footprint in bytes.
    pub fn bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.activation_bytes).saturating_add(self.context_bytes)
    }

    /// Refuses a budget that does not hold it.
    ///
    /// # Errors
    /// `does_not_fit` with the figures and `hint`.
    pub fn check(&self, stage: StageName, budget_bytes: Option<u64>, hint: &str) -> Result<(), JobError> {
        match budget_bytes {
            Some(budget) if self.bytes() > budget => {
                let message = format!(
                    "stage-{stage} does not fit its budget: it holds {} ({self}), budget {}",
                    Bytes(self.bytes()),
                    Bytes(budget)
                );
                Err(JobError::new(ErrorKind::DoesNotFit, message)
                    .hint(hint)
                    .detail("weights_bytes", self.weights_bytes)
                    .detail("activation_bytes", self.activation_bytes)
                    .detail("context_bytes", self.context_bytes)
                    .detail("budget_bytes", budget))
            }
            _ => Ok(()),
        }
    }

    /// Says what will be loaded, refuses what does not fit, and only then opens the device, capped.
    ///
    /// # Errors
    /// [`check`](Self::check)'s and [`Compute::open`]'s.
    pub fn open(
        &self,
        stage: StageName,
        compute: &ComputeConfig,
        budget_bytes: Option<u64>,
        hint: &str,
    ) -> Result<Compute, JobError> {
        tracing::info!(
            %stage,
            weights_bytes = self.weights_bytes,
            activation_bytes = self.activation_bytes,
            context_bytes = self.context_bytes,
            budget_bytes,
            "plan: {self}"
        );
        self.check(stage, budget_bytes, hint)?;
        Compute::open(compute, budget_bytes)
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of weights and {} of activations", Bytes(self.weights_bytes), Bytes(self.activation_bytes))?;
        if self.context_bytes > 0 {
            write!(f, " besides a context of {}", Bytes(self.context_bytes))?;
        }
        Ok(())
    }
}
