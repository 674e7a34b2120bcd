//! Jobs through a whole owner, with a port that the test holds: one program, which is linked once.

mod batch;
mod chat;
mod fixture;
mod job;
mod mistral;
mod model;
mod parked;
mod second_question;
mod several_questions;
mod text;
