//! What training needs, for any model.

pub mod autograd;
pub mod calibrate;
pub mod checkpoint;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod generate;
mod guard;
pub mod hub;
pub mod model;
pub mod optim;
pub mod peft;
pub mod plan;
pub mod prune;
pub mod retrain;
pub mod tensor;
