//! What goes beside a trained model so that others can use it: a model card, Ollama's Modelfile, and the proof that the
//! files behave as trained.

mod card;
mod modelfile;

pub use card::{Card, Losses};
pub use modelfile::{Modelfile, modelfile};
