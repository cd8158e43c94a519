//! What can be wrong with a model folder, an adapter, a tokenizer or an output folder.

use std::path::PathBuf;

/// The result of reading or writing a checkpoint.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure that names the file and tensor at fault, and what would be right. Every message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused to read or write.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "open", "write", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file or folder that must exist does not.
    #[error("{}: {reason}", path.display())]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
        /// What is missing and what would be right.
        reason: String,
    },
    /// A JSON file that is not what it should be.
    #[error("{}: {reason}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A text file larger than any real one.
    #[error("{} has more than {limit} bytes, which no such file needs; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes accepted.
        limit: u64,
    },
    /// A weight file that is damaged or no safetensors file.
    #[error("{}: {reason}", path.display())]
    WeightFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what would be right.
        reason: String,
    },
    /// An index entry that is not a plain file name.
    #[error(
        "{}: tensor {tensor} is said to be in {entry:?}, which is not a plain file name; \
         weight files must lie in the model folder itself", index.display()
    )]
    IndexPath {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The entry as it stands in the index.
        entry: String,
    },
    /// A tensor that the index promises and the shard lacks.
    #[error(
        "{}: no tensor {tensor}, though {} says it is there; copy or download both files again",
        shard.display(), index.display()
    )]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The shard.
        shard: PathBuf,
        /// The tensor.
        tensor: String,
    },
    /// A tensor that stands twice.
    #[error("tensor {tensor} is both in {first} and in {second}; only one of them can be meant")]
    Duplicate {
        /// The tensor.
        tensor: String,
        /// Where it was found first.
        first: String,
        /// Where it was found again.
        second: String,
    },
    /// A tensor that the model needs and the folder lacks.
    #[error("{}: no tensor named {tensor}{}", folder.display(), suggestions(nearest))]
    NoTensor {
        /// The model folder.
        folder: PathBuf,
        /// The name asked for.
        tensor: String,
        /// The existing names closest to it.
        nearest: Vec<String>,
    },
    /// A tensor whose shape is not what the configuration says.
    #[error("{}: tensor {tensor} has shape {got:?}, but config.json makes it {expected:?}", file.display())]
    Shape {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the file.
        got: Vec<usize>,
        /// The shape that the model needs.
        expected: Vec<usize>,
    },
    /// A tensor of an element type that cannot be a weight.
    #[error("{}: tensor {tensor} is {got}; weights must be F32, F16 or BF16: convert the model first", file.display())]
    DType {
        /// The weight file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its element type, as safetensors spells it.
        got: String,
    },
    /// The device could not take a tensor.
    #[error("cannot load tensor {tensor}: {source}")]
    Device {
        /// The tensor.
        tensor: String,
        /// The device's error.
        source: kernels::Error,
    },
    /// An output folder that may not be written.
    #[error("{}: {reason}", path.display())]
    Output {
        /// The folder.
        path: PathBuf,
        /// Why not, and what would be right.
        reason: String,
    },
    /// A checkpoint of a run that is torn, altered, or of another format.
    #[error("{}: {reason}", path.display())]
    Run {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A tensor to be written that contradicts itself.
    #[error("cannot write tensor {tensor}: {reason}")]
    BadTensor {
        /// The tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// An adapter that is damaged, or of a kind that is not supported.
    #[error("{}: {reason}", path.display())]
    Adapter {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// A tokenizer that cannot be read or made.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Settings from which no tokenizer can be trained.
    #[error("cannot train a tokenizer: {0}")]
    BpeTraining(String),
    /// Text that the tokenizer cannot encode, or ids that it cannot decode.
    #[error("the tokenizer failed: {0}")]
    Tokenize(String),
}

fn suggestions(nearest: &[String]) -> String {
    if nearest.is_empty() { String::new() } else { format!("; the closest names are {}", nearest.join(", ")) }
}

/// For `map_err`: an i/o error with what was tried and where.
pub(super) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| Error::Io { action, path, source }
}
