//! Methods by their names.

use std::fmt;
use std::str::FromStr;

use crate::model::LoraForm;

/// A method of the paper (its §3.1; those with merging adapters are of its later versions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Biases of linear layers.
    Biases,
    /// And weight and bias of every norm.
    Norms,
    /// And LoRA on the LM head.
    Probe,
    /// And LoRA on every q_proj and v_proj.
    Perp,
    /// As perp, with LoRA on every pruned layer that is masked as its weight is.
    MaskLora,
    /// As perp, with LoRA on every pruned layer that scales its weight's entries.
    ScaleLora,
    /// As perp, with LoRA on every pruned layer that is masked when it is merged.
    LoraPrune,
    /// Every parameter; pruned entries stay zero.
    Full,
}

impl Method {
    /// All methods, from the fewest parameters.
    pub const ALL: [Method; 8] = [
        Method::Biases,
        Method::Norms,
        Method::Probe,
        Method::Perp,
        Method::MaskLora,
        Method::ScaleLora,
        Method::LoraPrune,
        Method::Full,
    ];

    /// The name users give.
    pub fn name(self) -> &'static str {
        match self {
            Method::Biases => "biases",
            Method::Norms => "norms",
            Method::Probe => "probe",
            Method::Perp => "perp",
            Method::MaskLora => LoraKind::Mask.name(),
            Method::ScaleLora => LoraKind::Scale.name(),
            Method::LoraPrune => LoraKind::Prune.name(),
            Method::Full => "full",
        }
    }

    /// The adapters that it gives linear layers, if it gives them any.
    pub fn lora(self) -> LoraKind {
        match self {
            Method::MaskLora => LoraKind::Mask,
            Method::ScaleLora => LoraKind::Scale,
            Method::LoraPrune => LoraKind::Prune,
            _ => LoraKind::Lora,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Method {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Method, String> {
        Method::ALL
            .into_iter()
            .find(|method| method.name() == name)
            .ok_or_else(|| format!("unknown method '{name}': one of {}", Method::ALL.map(Method::name).join(", ")))
    }
}

/// What the adapters of linear layers are while they train, and what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoraKind {
    /// W + s·B·A, kept beside W: merged it would lose W's zeros.
    Lora,
    /// W + s·M⊙(B·A): merges exactly.
    Mask,
    /// W⊙(B·A): merges exactly.
    Scale,
    /// W + s·B·A while it trains, of which s·M⊙(B·A) is merged: what M takes away is lost.
    Prune,
}

impl LoraKind {
    /// All of them.
    pub const ALL: [LoraKind; 4] = [LoraKind::Lora, LoraKind::Mask, LoraKind::Scale, LoraKind::Prune];

    /// The name users give.
    pub fn name(self) -> &'static str {
        match self {
            LoraKind::Lora => "lora",
            LoraKind::Mask => "mask-lora",
            LoraKind::Scale => "scale-lora",
            LoraKind::Prune => "lora-prune",
        }
    }

    /// What is trained.
    pub fn form(self) -> LoraForm {
        match self {
            LoraKind::Lora | LoraKind::Prune => LoraForm::Added,
            LoraKind::Mask => LoraForm::Masked,
            LoraKind::Scale => LoraForm::Scaled,
        }
    }

    /// Whether it is merged into the weight when it is trained.
    pub fn merges(self) -> bool {
        self != LoraKind::Lora
    }
}
