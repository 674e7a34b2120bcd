//! Chat template: the text around a question, rendered as transformers does (MODEL.md 2.4; MODEL-7B.md, "Pre-processing").

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{StringInput, Value};
use minijinja::{Environment, Error, ErrorKind as TemplateErrorKind, State, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use model::checkpoint::{CheckpointError, CheckpointErrorKind};
use model::config_json::Family;
use protocol::error::{ErrorKind, JobError};
use serde_json::{Map, Value as Json};

/// Placeholder of the video, at the start of the user's message.
pub const PLACEHOLDER: &str = "<image>";
/// Settings of the tokenizer, among them its special tokens and, mostly, the template.
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// Template alone, as transformers saves it since 4.52; it counts before [`TOKENIZER_CONFIG`].
const TEMPLATE: &str = "chat_template.jinja";
/// Template as a processor saved it before that.
const TEMPLATE_JSON: &str = "chat_template.json";
/// Special tokens that a template may name; transformers leaves out those that are not set.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Special tokens by those names.
type Special = BTreeMap<String, String>;

/// Question with which a template is tried when it is loaded.
const PROBE: &str = "What happens in the video?";
/// Instructions of one rendering, and units of 64 bytes made by it, at most.
const FUEL: u64 = 1_000_000;

/// What prompts of a family have of their own.
struct Style {
    /// Template of the base model, where a checkpoint brings none.
    template: &'static str,
    /// Name of that template.
    named: &'static str,
    /// Tokens at the start and the end of a text, where tokenizer_config.json does not name them.
    ends: [&'static str; 2],
    /// Whether the prompt ends with the beginning of the model's turn.
    generation_prompt: bool,
    /// Whether a checkpoint without a template is taken to be made with the base model's.
    template_may_lack: bool,
}

fn style(family: Family) -> Style {
    match family {
        Family::Gemma2 => Style {
            template: include_str!("templates/gemma2.jinja"),
            named: "Gemma 2's",
            ends: ["<bos>", "<eos>"],
            generation_prompt: true,
            template_may_lack: true,
        },
        // v0.2's template has a space before [/INST] and v0.3's has none: nobody can tell which one is lacking.
        Family::Mistral => Style {
            template: include_str!("templates/mistral.jinja"),
            named: "Mistral 7B Instruct v0.3's",
            ends: ["<s>", "</s>"],
            generation_prompt: false,
            template_may_lack: false,
        },
    }
}

/// Origin of a chat template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// File of the checkpoint.
    File(&'static str),
    /// This program, under this name.
    BuiltIn(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File(name) => f.write_str(name),
            Origin::BuiltIn(named) => write!(f, "built in, {named}"),
        }
    }
}

/// Chat template of a checkpoint, with the special tokens that it names.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special: Value,
    bos: String,
    generation_prompt: bool,
    origin: Origin,
}

impl ChatTemplate {
    /// Template of a checkpoint directory, by the files in which transformers keeps it; else the family's own, if it may
    /// stand in.
    ///
    /// # Errors
    /// `Missing` where there is none and the family has no stand-in; `Malformed`, with the file, for one that is no
    /// template, does not render, leaves the question out, or does not put `<image>` before it exactly once.
    pub fn read(dir: &Path, family: Family) -> Result<Self, CheckpointError> {
        let tokenizer = json_file(&dir.join(TOKENIZER_CONFIG))?.unwrap_or_default();
        let special = special(&tokenizer, family);
        let wrong = |name: &str, what: String| malformed(&dir.join(name), &what);
        let (origin, template) = if let Some(text) = text_file(&dir.join(TEMPLATE))? {
            (Origin::File(TEMPLATE), text)
        } else if let Some(stored) = tokenizer.get("chat_template").filter(|stored| !stored.is_null()) {
            let text = default_of(stored).map_err(|what| wrong(TOKENIZER_CONFIG, what))?;
            (Origin::File(TOKENIZER_CONFIG), text)
        } else if let Some(stored) =
            json_file(&dir.join(TEMPLATE_JSON))?.and_then(|mut file| file.remove("chat_template"))
        {
            let text = default_of(&stored).map_err(|what| wrong(TEMPLATE_JSON, what))?;
            (Origin::File(TEMPLATE_JSON), text)
        } else if style(family).template_may_lack {
            return Ok(ChatTemplate::built_in_with(special, family));
        } else {
            let text = format!(
                "{}: no chat template in {TOKENIZER_CONFIG}, {TEMPLATE} or {TEMPLATE_JSON}, and versions of {} differ in \
                 theirs: put the file that was published with the checkpoint there",
                dir.display(),
                family.name()
            );
            return Err(CheckpointError::new(CheckpointErrorKind::Missing, text));
        };
        let file = match origin {
            Origin::File(name) => dir.join(name),
            Origin::BuiltIn(_) => dir.to_owned(),
        };
        let template = ChatTemplate::new(template, special, family, origin).map_err(|e| malformed(&file, &told(&e)))?;
        template.check().map_err(|what| malformed(&file, &what))?;
        Ok(template)
    }

    /// Template of the base model, for weights without files.
    pub fn built_in(family: Family) -> Self {
        ChatTemplate::built_in_with(special(&Map::new(), family), family)
    }

    fn built_in_with(special: Special, family: Family) -> Self {
        let Style { template, named, .. } = style(family);
        ChatTemplate::new(template.to_owned(), special, family, Origin::BuiltIn(named))
            .expect("the built-in templates are well formed, a test says so. This is a bug.")
    }

    fn new(template: String, special: Special, family: Family, origin: Origin) -> Result<Self, Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("trim", trimmed);
        environment.add_function("raise_exception", |message: &str| -> Result<Value, Error> {
            Err(Error::new(TemplateErrorKind::InvalidOperation, format!("it raises {message:?}")))
        });
        environment.set_unknown_method_callback(python_method);
        environment.add_template_owned(TEMPLATE, template)?;
        let bos = special.get(SPECIAL[0]).cloned().unwrap_or_default();
        let generation_prompt = style(family).generation_prompt;
        Ok(ChatTemplate { environment, special: special.into(), bos, generation_prompt, origin })
    }

    /// Where it is from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Token at the start of a text, which the tokenizer puts before every piece; empty if there is none.
    pub fn bos(&self) -> &str {
        &self.bos
    }

    /// Text before and after the video. Only the first `<image>`, which stands before the question, splits: one in the
    /// question is text. Every literal token at the start of a text is removed, as the reference does.
    ///
    /// # Errors
    /// `model`, where the template does not take this question.
    pub fn pieces(&self, question: &str) -> Result<[String; 2], JobError> {
        let refused = |what: String| {
            let text = format!("prompt not made: chat template ({}): {what}", self.origin);
            JobError::new(ErrorKind::Model, text).hint("correct the checkpoint's chat template")
        };
        let text = self.render(question).map_err(|e| refused(told(&e)))?;
        let (before, after) = text.split_once(PLACEHOLDER).ok_or_else(|| refused(no_placeholder(0)))?;
        Ok([before.to_owned(), after.to_owned()])
    }

    /// The prompt with `<image>` in it.
    fn render(&self, question: &str) -> Result<String, Error> {
        let message = context! { role => "user", content => format!("{PLACEHOLDER}\n{question}") };
        let given = context! {
            messages => [message],
            tools => (),
            documents => (),
            add_generation_prompt => self.generation_prompt,
            ..self.special.clone()
        };
        let text = self.environment.get_template(TEMPLATE)?.render(given)?;
        Ok(if self.bos.is_empty() { text } else { text.replace(&self.bos, "") })
    }

    /// Refuses a template from which no prompt can be made, by a prompt.
    fn check(&self) -> Result<(), String> {
        let text = self.render(PROBE).map_err(|e| told(&e))?;
        if !text.contains(PROBE) {
            return Err("its text leaves the user's message out".to_owned());
        }
        match text.matches(PLACEHOLDER).count() {
            1 if text.find(PLACEHOLDER) < text.find(PROBE) => Ok(()),
            1 => Err(format!("its text has the question before {PLACEHOLDER}")),
            count => Err(no_placeholder(count)),
        }
    }
}

fn no_placeholder(count: usize) -> String {
    format!("its text has {PLACEHOLDER}, the place of the video, {count} times and not once")
}

fn malformed(file: &Path, what: &str) -> CheckpointError {
    let text = format!("{}: the chat template cannot be used: {what}", file.display());
    CheckpointError::new(CheckpointErrorKind::Malformed, text)
}

/// Sentence of an error of the template.
fn told(error: &Error) -> String {
    format!("it does not render: {error}")
}

/// Template that is used without tools: the only one, or `default` of a list of named ones.
fn default_of(stored: &Json) -> Result<String, String> {
    let text = |template: &Json| template.as_str().map(str::to_owned);
    if let Some(template) = text(stored) {
        return Ok(template);
    }
    let named = stored.as_array().ok_or("chat_template is neither a text nor a list of named ones")?;
    let name = |entry: &Json| entry.get("name").and_then(text);
    let default = named.iter().find(|entry| name(entry).as_deref() == Some("default"));
    default.and_then(|entry| entry.get("template")).and_then(text).ok_or_else(|| {
        let names: Vec<String> = named.iter().filter_map(name).collect();
        format!("it is a list without one named \"default\": {}", names.join(", "))
    })
}

/// Special tokens of a tokenizer_config.json, each a text or an object with `content`; those of the family where it does not
/// name the ends of a text.
fn special(tokenizer: &Map<String, Json>, family: Family) -> Special {
    let text = |token: &Json| token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned);
    let own = style(family).ends.into_iter().map(str::to_owned).map(Some).chain(std::iter::repeat(None));
    let token = |(name, own): (&str, Option<String>)| {
        let stored = tokenizer.get(name).map_or(own, text);
        Some((name.to_owned(), stored?))
    };
    SPECIAL.into_iter().zip(own).filter_map(token).collect()
}

fn text_file(path: &Path) -> Result<Option<String>, CheckpointError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(CheckpointError::new(CheckpointErrorKind::Missing, format!("{}: {e}", path.display()))),
    }
}

fn json_file(path: &Path) -> Result<Option<Map<String, Json>>, CheckpointError> {
    let Some(text) = text_file(path)? else { return Ok(None) };
    let object = serde_json::from_str(&text);
    object.map(Some).map_err(|e| {
        CheckpointError::new(CheckpointErrorKind::Malformed, format!("{}: not a JSON object: {e}", path.display()))
    })
}

/// Text without the white space around it, as Python's `strip()` leaves it.
pub fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Whether a character is white space to Python: the four separator control characters are, too.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Jinja's filter `trim`, with Python's white space.
fn trimmed(text: StringInput<'_>, chars: Option<String>) -> String {
    match chars {
        Some(chars) => text.as_str().trim_matches(|c| chars.contains(c)).to_owned(),
        None => strip(text.as_str()).to_owned(),
    }
}

/// Methods of Python's texts, lists and dictionaries; `strip` with Python's white space.
fn python_method(state: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    match (value.as_str(), method, args) {
        (Some(text), "strip", []) => Ok(strip(text).into()),
        (Some(text), "lstrip", []) => Ok(text.trim_start_matches(is_space).into()),
        (Some(text), "rstrip", []) => Ok(text.trim_end_matches(is_space).into()),
        _ => unknown_method_callback(state, value, method, args),
    }
}
