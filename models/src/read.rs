//! Fields of a configuration, checked as they are read.

use serde_json::Value;

use crate::ConfigError;

type Result<T> = std::result::Result<T, ConfigError>;

/// Sizes above this are a damaged file, not a model; products of three of them stay within u64.
const LARGEST: u64 = 1 << 21;

/// More decoder layers than models have: each takes some kilobytes of a plan before anything is loaded.
const MOST_LAYERS: usize = 1 << 12;

/// A configuration's fields.
#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a Value);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// A size from 1 to 2²¹.
    pub fn size(&self, name: &str) -> Result<usize> {
        self.optional_size(name)?.ok_or_else(|| ConfigError(format!("{name} is missing")))
    }

    /// A size, or nothing where the field is missing or null.
    pub fn optional_size(&self, name: &str) -> Result<Option<usize>> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(size) if (1..=LARGEST).contains(&size) => Ok(Some(size as usize)),
                _ => Err(ConfigError(format!("{name} is {value}, expected a whole number from 1 to {LARGEST}"))),
            },
        }
    }

    /// The number of decoder layers, from 1 to 4096.
    pub fn layers(&self) -> Result<usize> {
        const NAME: &str = "num_hidden_layers";
        match self.size(NAME)? {
            layers if layers <= MOST_LAYERS => Ok(layers),
            layers => Err(ConfigError(format!("{NAME} is {layers}, expected a whole number from 1 to {MOST_LAYERS}"))),
        }
    }

    /// A finite number above zero.
    pub fn positive(&self, name: &str, default: f64) -> Result<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() && number > 0.0 => Ok(number),
                _ => Err(ConfigError(format!("{name} is {value}, expected a number above 0"))),
            },
        }
    }

    /// A finite number above zero that must be there.
    pub fn required_positive(&self, name: &str) -> Result<f64> {
        self.get(name).ok_or_else(|| ConfigError(format!("{name} is missing")))?;
        self.positive(name, 0.0)
    }

    /// True or false.
    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(ConfigError(format!("{name} is {value}, expected true or false"))),
        }
    }

    /// A string.
    pub fn text(&self, name: &str, default: &'a str) -> Result<&'a str> {
        match self.get(name) {
            None => Ok(default),
            Some(Value::String(text)) => Ok(text),
            Some(value) => Err(ConfigError(format!("{name} is {value}, expected a string"))),
        }
    }

    /// An object's fields, or nothing where the field is missing or null.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        match self.get(name) {
            None => Ok(None),
            Some(value @ Value::Object(_)) => Ok(Some(Fields(value))),
            Some(value) => Err(ConfigError(format!("{name} is {value}, expected an object"))),
        }
    }

    /// A list, or nothing where the field is missing or null.
    pub fn list(&self, name: &str) -> Result<Option<&'a [Value]>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(value) => Err(ConfigError(format!("{name} is {value}, expected a list"))),
        }
    }
}

/// Features of a head, where heads share the hidden width evenly.
pub fn even_heads(hidden: usize, heads: usize) -> Result<usize> {
    if hidden.is_multiple_of(heads) {
        Ok(hidden / heads)
    } else {
        Err(ConfigError(format!("num_attention_heads {heads} does not divide hidden_size {hidden}")))
    }
}
