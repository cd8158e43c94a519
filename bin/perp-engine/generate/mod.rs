//! `generate`: what models make of a prompt, beside each other or one after the other.

mod columns;

use std::path::{Path, PathBuf};
use std::time::Instant;

use console::Term;
use engine::checkpoint::{Adapter, Tokenizer};
use engine::generate::{Generation, Sampler, Sampling, TextStream};
use engine::model::Model;
use engine::peft;
use kernels::Device;
use serde_json::{Value, json};

use crate::args::{MachineArgs, above_zero, at_least_zero, positive};
use crate::error::{Failure, print};
use crate::progress::{Console, clock};
use crate::report;
use crate::session::{self, demo};
use columns::Columns;

/// Let models go on from a prompt, token by token: the dense, the pruned and the retrained one, say, side by side. Without --model this
/// is the demo's.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Model folder, or a model of the hub, such as facebook/opt-1.3b; several are heard side by side, each under its name.
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
    /// Hear several models one after the other instead, each alone in memory.
    #[arg(long)]
    in_turn: bool,
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
    let with = |i: usize| args.adapter.as_ref().zip(adapter.as_ref()).filter(|_| i + 1 == voices.len());
    let names: Vec<String> = voices
        .iter()
        .enumerate()
        .map(|(i, voice)| {
            voice.opened.name.clone() + &with(i).map_or(String::new(), |(path, _)| format!(" + {}", path.display()))
        })
        .collect();
    let load = |i: usize| voices[i].load(&console, &device, with(i).map(|(_, adapter)| adapter));
    let columns = (voices.len() > 1 && !args.in_turn).then(|| columns(voices.len())).flatten();
    let mut heard = match columns {
        Some(columns) => side_by_side(args, sampling, &voices, &names, columns, load)?,
        None => in_turn(args, sampling, &voices, &names, load)?,
    };
    for (i, (said, name)) in heard.iter_mut().zip(&names).enumerate() {
        let name = if voices.len() > 1 { format!("{name}: ") } else { String::new() };
        console.say(&format!("{name}{}", said.summary));
        said.json["adapter"] = json!(with(i).map(|(path, _)| path));
    }
    let heard: Vec<Value> = heard.into_iter().map(|said| said.json).collect();
    args.machine.report.as_deref().map_or(Ok(()), |path| report::write(path, &heard))
}

/// Columns as wide as the terminal, or as a page where there is none; none where they would be too narrow.
fn columns(count: usize) -> Option<Columns> {
    const PAGE: usize = 100;
    let terminal = Term::stdout();
    let width = if terminal.is_term() { usize::from(terminal.size().1) } else { PAGE };
    Columns::fit(count, width, terminal.is_term())
}

/// Lets all models go on at the same time, a token each in turn.
fn side_by_side(
    args: &Args,
    sampling: Sampling,
    voices: &[Voice],
    names: &[String],
    mut columns: Columns,
    load: impl Fn(usize) -> Result<Box<dyn Model>, Failure>,
) -> Result<Vec<Said>, Failure> {
    let models: Vec<Box<dyn Model>> = (0..voices.len()).map(load).collect::<Result<_, _>>()?;
    print(&format!("{}\n\n{}", args.prompt, columns.head(names)))?;
    let mut speeches: Vec<Speech> =
        voices.iter().zip(&models).map(|(voice, model)| voice.speak(&**model, sampling, args.tokens)).collect();
    let mut speaking: Vec<usize> = (0..speeches.len()).collect();
    while !speaking.is_empty() {
        let mut on = Vec::new();
        for i in speaking {
            match speeches[i].next()? {
                Some(new) => {
                    print(&columns.push(i, &new))?;
                    on.push(i);
                }
                None => {
                    let rest = speeches[i].finish()?;
                    print(&(columns.push(i, &rest) + &columns.end(i)))?;
                }
            }
        }
        speaking = on;
    }
    Ok(speeches.into_iter().map(|speech| speech.said(&args.prompt)).collect())
}

/// Lets one model after the other go on.
fn in_turn(
    args: &Args,
    sampling: Sampling,
    voices: &[Voice],
    names: &[String],
    load: impl Fn(usize) -> Result<Box<dyn Model>, Failure>,
) -> Result<Vec<Said>, Failure> {
    let mut heard = Vec::new();
    for (i, voice) in voices.iter().enumerate() {
        if voices.len() > 1 {
            print(&format!("{}── {}\n", if i > 0 { "\n" } else { "" }, names[i]))?;
        }
        let model = load(i)?;
        print(&args.prompt)?;
        let mut speech = voice.speak(&*model, sampling, args.tokens);
        while let Some(new) = speech.next()? {
            print(&new)?;
        }
        print(&format!("{}\n", speech.finish()?))?;
        heard.push(speech.said(&args.prompt));
    }
    Ok(heard)
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

    fn load(&self, console: &Console, device: &Device, adapter: Option<&Adapter>) -> Result<Box<dyn Model>, Failure> {
        let mut model = session::load(console, device, &self.opened, None, 0)?;
        if let Some(adapter) = adapter {
            peft::attach(&mut *model, adapter)?;
        }
        Ok(model)
    }

    /// What `model`, which is this one's, makes of the prompt in at most `most` tokens.
    fn speak<'a>(&'a self, model: &'a dyn Model, sampling: Sampling, most: usize) -> Speech<'a> {
        Speech {
            voice: self,
            generation: Generation::new(model, &self.prompt, Sampler::new(sampling)),
            stream: Some(TextStream::new(&self.tokenizer, &self.prompt)),
            most,
            text: String::new(),
            seconds: 0.0,
            why: "",
        }
    }
}

/// A text as it comes.
struct Speech<'a> {
    voice: &'a Voice,
    generation: Generation<'a>,
    /// Until it is finished.
    stream: Option<TextStream<'a>>,
    most: usize,
    text: String,
    /// That the model took.
    seconds: f64,
    /// It ended before it had all its tokens.
    why: &'static str,
}

/// What was made of a prompt.
struct Said {
    json: Value,
    summary: String,
}

impl Speech<'_> {
    /// The text of the next token; nothing where there is none.
    fn next(&mut self) -> Result<Option<String>, Failure> {
        if self.generation.made().len() >= self.most {
            return Ok(None);
        }
        let start = Instant::now();
        let token = self.generation.next_token()?;
        self.seconds += start.elapsed().as_secs_f64();
        let Some(token) = token else {
            self.why = ", where the model's context is full";
            return Ok(None);
        };
        if self.voice.ends.contains(&token) {
            self.why = ", where the text ends";
            return Ok(None);
        }
        let new = self.stream.as_mut().map_or(Ok(String::new()), |stream| stream.push(token))?;
        self.text += &new;
        Ok(Some(new))
    }

    /// What is left of the text at its end.
    fn finish(&mut self) -> Result<String, Failure> {
        let rest = self.stream.take().map_or(Ok(String::new()), TextStream::finish)?;
        self.text += &rest;
        Ok(rest)
    }

    fn said(self, prompt: &str) -> Said {
        let (made, seconds) = (self.generation.made(), self.seconds);
        let json = json!({
            "model": self.voice.opened.name, "prompt": prompt, "text": self.text, "tokens": made, "seconds": seconds,
        });
        Said { json, summary: format!("{} tokens in {}{}", made.len(), clock(seconds), self.why) }
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
