//! Models, adapters and tokenizers on disk, in the formats of the Hugging Face ecosystem.
//!
//! * [`ModelFolder`] maps a model's weight files and knows every tensor by name; [`TensorInfo`] brings one tensor at a
//!   time to a device. Nothing is read before it is asked for, so the dense model is never in memory whole.
//! * [`OutputFolder`] is how anything is written: in a hidden folder beside the wanted one, synced, and renamed when
//!   complete. [`write_model`] and [`write_adapter`] fill it.
//! * [`Disk`] is all that these ask of a file system, so that tests can stand in for one that loses power.
//! * [`Adapter`] is a LoRA adapter folder as PEFT has them, or of a form that lies inside its weights.
//! * [`RunFolder`] holds the checkpoints of a training run, [`RunCheckpoint`] is one that proved intact.
//! * [`Tokenizer`] turns text into token ids; [`train_bpe`] makes one.
//!
//! Files are data: nothing in them is executed, sizes are checked before memory is taken, and the file names in an
//! index must be plain names, so that no index can point outside its folder.

mod adapter;
mod compressed;
mod disk;
mod error;
mod files;
mod folder;
mod output;
mod packed;
mod pieces;
mod run;
mod tensor_info;
mod tokenizer;
mod weight_file;
mod write;

#[cfg(test)]
mod tests;

pub use adapter::{Adapter, AdapterConfig, HEAD_MODULE, LoraForm, LoraTensors, NewLora, write_adapter};
pub use disk::{Disk, DiskFile, Open, SystemDisk};
pub use error::{Error, Result};
pub use files::{check_replaceable, replace_file, replace_file_on};
pub use folder::ModelFolder;
pub use output::{OutputFolder, file_hash, folder_hash};
pub use packed::WeightFormat;
pub(crate) use packed::{is_worth_packing, new_tensors};
pub use run::{Newest, RunCheckpoint, RunFolder};
pub use tensor_info::TensorInfo;
pub use tokenizer::{BpeSettings, Tokenizer, train_bpe};
pub use write::{DEFAULT_SHARD_BYTES, NewTensor, write_model};
