//! Memory that kernels take besides operands and outcomes, for whoever plans a stage's.

/// Bytes that a matmul through cuBLASLt may use on a GPU besides its operands and outcome.
pub const WORKSPACE_BYTES: usize = 8 << 20;
