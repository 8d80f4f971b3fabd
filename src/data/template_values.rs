//! Values of a row for the chat template besides its messages: the columns `tools` and
//! `chat_template_kwargs`, as in TRL 1.16.

use serde_json::{Map, Value};

use super::report::BadRow;
use super::source::cell::{CHAT_TEMPLATE_KWARGS, Cell, TEMPLATE_COLUMNS, TOOLS};

/// Names that transformers' `apply_chat_template` takes for itself. In `chat_template_kwargs` they
/// would not reach the template.
const TAKEN: [&str; 13] = [
    "conversation",
    "messages",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
];

/// The values of one row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateValues {
    /// The tools as JSON schemas, or none.
    pub tools: Option<Value>,
    /// Further variables of the template, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

impl TemplateValues {
    /// The values in the fields of a row. Fields of other names are ignored.
    ///
    /// # Errors
    /// A field has the wrong form.
    pub fn of_fields(fields: &Map<String, Value>) -> Result<Self, BadRow> {
        let given = TEMPLATE_COLUMNS.into_iter().filter(|name| fields.contains_key(*name));
        let columns: Vec<String> = given.map(str::to_owned).collect();
        let cells = columns.iter().map(|name| Cell::Json(fields[name].clone())).collect();
        Self::of(&columns, cells)
    }

    /// Reads the cells of these columns, which are [`TOOLS`] and [`CHAT_TEMPLATE_KWARGS`] or fewer.
    pub(super) fn of(columns: &[String], cells: Vec<Cell>) -> Result<Self, BadRow> {
        let mut values = Self::default();
        for (column, cell) in columns.iter().zip(cells) {
            let value = match cell {
                Cell::Json(value) => parsed(value),
                Cell::Bad(reason) => return Err(reason),
                _ => return Err(BadRow::WrongType(column.clone())),
            };
            match (column.as_str(), value) {
                (_, Some(Value::Null)) => {}
                (TOOLS, Some(Value::Array(tools))) if tools.iter().all(Value::is_object) => {
                    values.tools = Some(Value::Array(tools));
                }
                (CHAT_TEMPLATE_KWARGS, Some(Value::Object(variables))) => {
                    if let Some(name) = variables.keys().find(|name| TAKEN.contains(&&***name)) {
                        return Err(BadRow::TakenVariable(name.clone()));
                    }
                    values.variables = variables;
                }
                _ => return Err(BadRow::NotTemplateValue(column.clone())),
            }
        }
        Ok(values)
    }
}

/// The value itself, or the one that a JSON text holds; `None` for a text that is not JSON.
fn parsed(value: Value) -> Option<Value> {
    match value {
        Value::String(text) => serde_json::from_str(&text).ok(),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(tools: Value, kwargs: Value) -> Result<TemplateValues, BadRow> {
        let columns = [TOOLS.to_owned(), CHAT_TEMPLATE_KWARGS.to_owned()];
        TemplateValues::of(&columns, vec![Cell::Json(tools), Cell::Json(kwargs)])
    }

    #[test]
    fn tools_may_be_a_list_or_its_json_text() {
        let tools = json!([{"name": "f"}]);
        for given in [tools.clone(), json!(tools.to_string())] {
            assert_eq!(values(given, json!(null)).unwrap().tools, Some(tools.clone()));
        }
        assert_eq!(values(json!(null), json!(null)), Ok(TemplateValues::default()));
        let bad = Err(BadRow::NotTemplateValue(TOOLS.to_owned()));
        for given in [json!("f"), json!(["f"]), json!({"name": "f"})] {
            assert_eq!(values(given, json!(null)), bad);
        }
    }

    #[test]
    fn variables_may_not_replace_what_the_program_sets() {
        let variables = json!({"enable_thinking": false});
        let found = values(json!(null), variables.clone()).unwrap().variables;
        assert_eq!(Value::from(found), variables);
        let taken = values(json!(null), json!({"add_generation_prompt": true}));
        assert_eq!(taken, Err(BadRow::TakenVariable("add_generation_prompt".to_owned())));
    }
}
