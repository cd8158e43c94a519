//! `generate`: what models make of a prompt, one after the other.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use engine::checkpoint::{Adapter, Tokenizer};
use engine::generate::{self, Sampler, Sampling, TextStream};
use engine::peft;
use kernels::Device;
use serde_json::{Value, json};

use crate::args::{MachineArgs, above_zero, at_least_zero, positive};
use crate::error::{Failure, print};
use crate::progress::{Console, clock};
use crate::report;
use crate::session::{self, demo};

/// Let models go on from a prompt, token by token: the dense, the pruned and the retrained one, say. Without --model this is the
/// demo's.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder, or a model of the hub, such as facebook/opt-1.3b; several are heard one after the other, each under its name.
    #[arg(long, value_name = "DIR|ID")]
    model: Vec<PathBuf>,
    /// LoRA adapter folder in PEFT's form, applied to the last --model.
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// What the text begins with.
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Tokens to make at most; a text ends earlier at the end-of-text token, or where the model's context is full.
    #[arg(long, default_value_t = 64, value_parser = positive, value_name = "N")]
    tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// How tokens are drawn.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Sampling")]
struct SamplingArgs {
    /// Above 0 tokens are drawn, the more evenly the higher; at 0 the likeliest is taken.
    #[arg(long, default_value_t = 0.0, value_parser = at_least_zero, allow_negative_numbers = true, value_name = "T")]
    temperature: f64,
    /// Draw from so many of the likeliest tokens only [default: all].
    #[arg(long, value_parser = positive, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens only whose probabilities add up to this.
    #[arg(long, default_value_t = 1.0, value_parser = above_zero, allow_negative_numbers = true, value_name = "P")]
    top_p: f64,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0, value_name = "N")]
    seed: u64,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    args.machine.report.as_deref().map_or(Ok(()), |path| report::check_data("--report", path))?;
    let console = Console::new(args.machine.quiet);
    let SamplingArgs { temperature, top_k, top_p, seed } = args.sampling;
    let sampling = Sampling { temperature, top_k, top_p, seed };
    let models = if args.model.is_empty() { vec![demo::model()?] } else { args.model.clone() };
    // All are opened before the first is heard.
    let adapter = args.adapter.as_ref().map(Adapter::open).transpose()?;
    let voices: Vec<Voice> =
        models.iter().map(|named| Voice::open(&console, named, &args.prompt)).collect::<Result<_, _>>()?;
    let device = session::device(&console, &args.machine)?;
    let mut heard = Vec::new();
    for (i, voice) in voices.iter().enumerate() {
        let with = args.adapter.as_ref().zip(adapter.as_ref()).filter(|_| i + 1 == voices.len());
        if voices.len() > 1 {
            let with = with.map_or(String::new(), |(path, _)| format!(" + {}", path.display()));
            print(&format!("{}── {}{with}\n", if i > 0 { "\n" } else { "" }, voice.opened.name))?;
        }
        let mut said = voice.speak(&console, &device, with.map(|(_, adapter)| adapter), args, sampling)?;
        said["adapter"] = json!(with.map(|(path, _)| path));
        heard.push(said);
    }
    args.machine.report.as_deref().map_or(Ok(()), |path| report::write(path, &heard))
}

/// A model that is ready to be loaded, and the prompt in its tokens.
struct Voice {
    opened: session::Opened,
    tokenizer: Tokenizer,
    prompt: Vec<u32>,
    ends: Vec<u32>,
}

impl Voice {
    fn open(console: &Console, named: &Path, prompt: &str) -> Result<Voice, Failure> {
        let opened = session::open(console, named)?;
        let ends = ends(opened.folder.config());
        let tokenizer = Tokenizer::from_folder(&opened.path)?;
        let prompt = tokenizer.encode(prompt)?;
        let (length, context) = (prompt.len(), opened.architecture.info().context);
        if length >= context {
            return Err(Failure::usage(format!(
                "--prompt has {length} tokens, and {} reads {context} at most, those it makes included: shorten it",
                opened.name
            )));
        }
        if length == 0 {
            return Err(Failure::usage(format!(
                "--prompt is empty, and the tokenizer of {} puts no token in front: give some text",
                opened.name
            )));
        }
        Ok(Voice { opened, tokenizer, prompt, ends })
    }

    /// Prints the prompt and what follows as it comes; returns what was made.
    fn speak(
        &self,
        console: &Console,
        device: &Device,
        adapter: Option<&Adapter>,
        args: &Args,
        sampling: Sampling,
    ) -> Result<Value, Failure> {
        let mut model = session::load(console, device, &self.opened, None, 0)?;
        if let Some(adapter) = adapter {
            peft::attach(&mut *model, adapter)?;
        }
        print(&args.prompt)?;
        let start = std::time::Instant::now();
        let mut tokens = self.prompt.clone();
        let mut stream = TextStream::new(&self.tokenizer, &tokens);
        let (mut text, mut ended) = (String::new(), false);
        let mut sampler = Sampler::new(sampling);
        let made = generate::generate(&*model, &mut tokens, args.tokens, &mut sampler, &mut |token| {
            if self.ends.contains(&token) {
                ended = true;
                return Ok::<_, Failure>(ControlFlow::Break(()));
            }
            let new = stream.push(token)?;
            text += &new;
            print(&new)?;
            Ok(ControlFlow::Continue(()))
        })?;
        let rest = stream.finish()?;
        print(&format!("{rest}\n"))?;
        text += &rest;
        let seconds = start.elapsed().as_secs_f64();
        let why = match (ended, made < args.tokens) {
            (true, _) => ", where the text ends",
            (false, true) => ", where the model's context is full",
            (false, false) => "",
        };
        console.say(&format!("{made} tokens in {}{why}", clock(seconds)));
        Ok(json!({
            "model": self.opened.name, "prompt": args.prompt, "text": text, "tokens": tokens[self.prompt.len()..],
            "seconds": seconds,
        }))
    }
}

/// The tokens that end a text: `eos_token_id`, which is one or a list.
fn ends(config: &Value) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match &config["eos_token_id"] {
        Value::Array(list) => list.iter().filter_map(one).collect(),
        value => one(value).into_iter().collect(),
    }
}
