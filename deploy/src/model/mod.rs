//! A checkpoint's files, without running it.
//!
//! In reading order: [`inspect`] (tensor by tensor), [`device_plan`] (what the stages on one device will hold of it), [`plan`] (on
//! all devices), [`remedies`] (what would help where a video does not fit) and
//! [`plan_json`] (the same for programs), [`quantize`] (a language
//! model in blocks), [`demo_model`] (a random checkpoint in the layout of the real one), [`shipped`] (the trained one
//! that comes with the project).

pub mod demo_model;
pub mod device_plan;
pub mod inspect;
pub mod plan;
pub mod plan_json;
pub mod quantize;
pub mod remedies;
pub mod shipped;
