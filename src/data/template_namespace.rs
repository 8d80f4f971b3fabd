//! Jinja's `namespace`, whose attributes `{% set name.attribute = … %}` assigns.
//!
//! A namespace can hold itself. minijinja's own namespaces are mappings, and the comparison or the
//! text of such a mapping recurses until the stack is exhausted. The namespaces here are plain
//! objects, as in jinja2: only attributes are read, and two are equal if they are the same.
//! minijinja assigns to its own namespaces only, so the tag is rewritten to a filter before the
//! template is compiled. An assignment that the rewriting overlooks is an error.

use std::cell::Cell;
use std::cmp::Ordering;
use std::fmt;
use std::mem::take;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::{
    Environment, Error, ErrorKind, State, Value,
    value::{DynObject, Kwargs, Object, ObjectRepr, Rest, ValueKind},
};

use super::template_tags::{Kind, Token, rewrite_tags, without_control};

const FILTER: &str = "favonius_assign";
/// The variables that take the values of a tag until the filter assigns them.
const VARIABLE: &str = "favonius_assigned";

/// The attributes in the order of their first assignment.
#[derive(Default)]
struct Namespace(Mutex<Vec<(Arc<str>, Value)>>);

impl Namespace {
    fn attributes(&self) -> MutexGuard<'_, Vec<(Arc<str>, Value)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Assigns an attribute. The old value is dropped after the lock is released.
    fn set(&self, name: &str, value: Value) {
        let mut attributes = self.attributes();
        let _old = match attributes.iter_mut().find(|(known, _)| **known == *name) {
            Some((_, old)) => std::mem::replace(old, value),
            None => {
                attributes.push((name.into(), value));
                return;
            }
        };
        drop(attributes);
    }
}

impl Object for Namespace {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let attributes = self.attributes();
        attributes.iter().find(|(name, _)| **name == *key).map(|(_, value)| value.clone())
    }

    /// The order of addresses: a namespace only equals itself.
    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<Ordering> {
        let other: &Self = other.downcast_ref()?;
        Some(std::ptr::from_ref(&**self).cmp(&std::ptr::from_ref(other)))
    }
}

thread_local! {
    static IS_WRITING: Cell<bool> = const { Cell::new(false) };
}

/// Jinja's text `<Namespace {'name': 'a'}>`. Namespaces in a namespace are abbreviated.
impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Writing;
        impl Drop for Writing {
            fn drop(&mut self) {
                IS_WRITING.set(false);
            }
        }
        if IS_WRITING.replace(true) {
            return f.write_str("<Namespace {...}>");
        }
        let _writing = Writing;
        let attributes = self.attributes().clone();
        f.write_str("<Namespace {")?;
        for (index, (name, value)) in attributes.iter().enumerate() {
            let separator = if index > 0 { ", " } else { "" };
            write!(f, "{separator}'{name}': {value:?}")?;
        }
        f.write_str("}>")
    }
}

/// The namespaces of one rendering.
#[derive(Default)]
struct Created(Vec<Arc<Namespace>>);

/// Empties the namespaces, so that those which hold themselves are freed, and long chains are freed
/// without recursion.
impl Drop for Created {
    fn drop(&mut self) {
        for namespace in &self.0 {
            let attributes = take(&mut *namespace.attributes());
            drop(attributes);
        }
    }
}

/// Adds the function `namespace` and the filter of [`rewrite_assignments`].
pub(crate) fn add_namespaces(environment: &mut Environment) {
    environment.add_function("namespace", namespace);
    environment.add_filter(FILTER, assign);
}

/// The function `namespace`: attributes from a mapping, from arguments by name, or from both.
fn namespace(state: &mut State, mappings: Rest<Value>, by_name: Kwargs) -> Result<Value, Error> {
    let created = Arc::new(Namespace::default());
    match mappings.as_slice() {
        [] => {}
        [mapping] if mapping.kind() == ValueKind::Map => {
            for key in mapping.try_iter()? {
                if let Some(name) = key.as_str() {
                    created.set(name, mapping.get_item(&key)?);
                }
            }
        }
        [other, ..] => {
            let message = format!("namespace: expected one mapping, got {}", other.kind());
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    for name in by_name.args() {
        created.set(name, by_name.get(name)?);
    }
    state.get_or_insert_extension_with(Created::default).0.push(created.clone());
    Ok(Value::from_dyn_object(created))
}

/// The filter: assigns an attribute of a namespace.
fn assign(namespace: &Value, name: &str, value: Value) -> Result<(), Error> {
    let Some(namespace) = namespace.downcast_object_ref::<Namespace>() else {
        let message = format!("can only assign to namespaces, not {}", namespace.kind());
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    };
    namespace.set(name, value);
    Ok(())
}

/// The template with the filter for every tag that assigns an attribute.
pub(super) fn rewrite_assignments(source: &str) -> String {
    // The assignments that follow the `endset` of each open block.
    let mut open = Vec::new();
    rewrite_tags(source, |opening, inside| {
        let assignments = match (opening, without_control(inside)) {
            ("{%", "endset") => open.pop().unwrap_or_default(),
            ("{%", _) => match Targets::of(inside) {
                Some(targets) if targets.is_block => {
                    open.push(targets.assignments);
                    return targets.inside;
                }
                Some(targets) => return followed_by(&targets.inside, &targets.assignments),
                None => return inside.to_owned(),
            },
            _ => return inside.to_owned(),
        };
        followed_by(inside, &assignments)
    })
}

/// The inside of a tag, with more tags after it. The last one gets the tag's white-space control.
fn followed_by(inside: &str, tags: &[String]) -> String {
    if tags.is_empty() {
        return inside.to_owned();
    }
    let end = inside.trim_end_matches(['-', '+']).len();
    // At most one sign belongs to the tag.
    let end = end.max(inside.len().saturating_sub(1));
    format!("{} %}}{{% {} {}", &inside[..end], tags.join(" %}{% "), &inside[end..])
}

/// The targets of a tag `set`.
struct Targets {
    /// The inside of the tag, with variables for the attributes.
    inside: String,
    /// The insides of tags that assign the attributes.
    assignments: Vec<String>,
    /// Whether the value is the text up to `endset`.
    is_block: bool,
}

impl Targets {
    /// `None` if the tag is no `set`.
    fn of(inside: &str) -> Option<Self> {
        let start = inside.len() - inside.trim_start_matches(['-', '+']).trim_start().len();
        let word = inside[start..].strip_prefix("set")?;
        let mut at = inside.len() - word.len();
        let mut targets =
            Self { inside: inside[..at].to_owned(), assignments: Vec::new(), is_block: true };
        if word.starts_with(|c: char| c.is_alphanumeric() || c == '_') {
            return None;
        }
        while at < inside.len() {
            let token = Token::at(inside, at);
            let text = &inside[at..token.end];
            if token.kind == Kind::Operator && text != "," {
                targets.is_block = text != "=";
                break;
            }
            at = token.end;
            match token.kind {
                Kind::Name => at = targets.push_name(inside, token),
                _ => targets.inside.push_str(text),
            }
        }
        targets.inside.push_str(&inside[at..]);
        Some(targets)
    }

    /// Adds the target that starts with this name, and returns its end.
    fn push_name(&mut self, inside: &str, name: Token) -> usize {
        let (mut end, mut last) = (name.end, None);
        while let Some((dot, next)) = attribute_after(inside, end) {
            (end, last) = (next.end, Some((dot, next)));
        }
        match last {
            None => self.inside.push_str(&inside[name.start..end]),
            Some((dot, last)) => {
                let variable = format!("{VARIABLE}_{}", self.assignments.len());
                self.inside.push_str(&variable);
                let (namespace, name) = (&inside[name.start..dot], &inside[last.start..last.end]);
                self.assignments
                    .push(format!("set {variable} = {namespace}|{FILTER}('{name}', {variable})"));
            }
        }
        end
    }
}

/// The place of a dot at or after `from`, blanks aside, and the name behind it.
fn attribute_after(inside: &str, from: usize) -> Option<(usize, Token)> {
    let after_blanks = |from: usize| inside.len() - inside[from..].trim_start().len();
    let dot = after_blanks(from);
    let name = inside[dot..].strip_prefix('.').map(|_| after_blanks(dot + 1))?;
    let token = (name < inside.len()).then(|| Token::at(inside, name))?;
    (token.kind == Kind::Name).then_some((dot, token))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Message;
    use crate::data::template::{ChatTemplate, TemplateError};
    use crate::data::template_values::TemplateValues;

    fn render(source: &str) -> Result<String, TemplateError> {
        let template = ChatTemplate::new(source, [])?;
        let chat = [Message::new("user", "Hi"), Message::new("assistant", "Ho")];
        template.render(&chat, false, &TemplateValues::default()).map(|rendered| rendered.text)
    }

    #[test]
    fn assignments_of_attributes_become_a_filter() {
        let filter = |variable: usize, namespace: &str, name: &str| {
            let variable = format!("favonius_assigned_{variable}");
            format!("set {variable} = {namespace}|favonius_assign('{name}', {variable})")
        };
        let [x, y, deep] = [filter(0, "n", "x"), filter(1, "n", "y"), filter(0, "a.b", "c")];
        for (source, expected) in [
            (
                "{%- set n.x = n.x + 1 -%}",
                format!("{{%- set favonius_assigned_0 = n.x + 1  %}}{{% {x} -%}}"),
            ),
            (
                "{%set n . x='%}' %}",
                format!("{{%set favonius_assigned_0='%}}'  %}}{{% {} %}}", filter(0, "n ", "x")),
            ),
            (
                "{% set (n.x, a), n.y = b +%}",
                format!(
                    "{{% set (favonius_assigned_0, a), favonius_assigned_1 = b  %}}{{% {x} \
                     %}}{{% {y} +%}}"
                ),
            ),
            (
                "{% set a.b.c | upper %}{% set d %}t{% endset %}{%- endset -%}",
                format!(
                    "{{% set favonius_assigned_0 | upper %}}{{% set d %}}t{{% endset %}}{{%- \
                     endset  %}}{{% {deep} -%}}"
                ),
            ),
        ] {
            assert_eq!(rewrite_assignments(source), expected);
        }
        for unchanged in [
            "{% set a = n.x %}{% set a, b = n.x, n.y %}{% set a | f(n.x) %}{% endset %}",
            "{{ set n.x = 1 }}{# {% set n.x = 1 %} #}{% raw %}{% set n.x = 1 %}{% endraw %}",
            "{% settle n.x = 1 %}{% set %}{% set . = %}{% set 1.x = 2 %}{% endset %}{% set",
        ] {
            assert_eq!(rewrite_assignments(unchanged), unchanged);
        }
    }

    /// The texts are those of jinja2 3.1.6, with minijinja's quotes.
    #[test]
    fn namespaces_are_those_of_jinja() {
        for (arguments, used, expected) in [
            ("x=1", "{% for m in messages %}{% set n.x = n.x + 1 %}{% endfor %}{{ n.x }}", "3"),
            ("{'a': 1}, b='t'", "{{ n.a }}{{ n['b'] }}{{ n.c is defined }}", "1tFalse"),
            ("{'a': 1}, a=2", "{{ n.a }}", "2"),
            (
                "b=1, a=2",
                "{{ n }}{{ [n] }}",
                "<Namespace {'b': 1, 'a': 2}>[<Namespace {'b': 1, 'a': 2}>]",
            ),
            ("", "{% set n.a, b = 1, 2 %}{{ n.a }}{{ b }}", "12"),
            ("", "{% set n.a | upper %}x{{ n.a is defined }}{% endset %}{{ n.a }}", "XFALSE"),
            ("m=namespace()", "{% set m = n.m %}{% set m.c = 1 %}{{ n.m.c }}", "1"),
            (
                "",
                "{% set m = namespace() %}{{ n == n }}{{ n == m }}{{ n in [m, n] }}",
                "TrueFalseTrue",
            ),
            ("", "{{ 'y' if n else 'n' }}{{ n is mapping }}{{ n is iterable }}", "yFalseFalse"),
            ("x=0", "\n  {% set n.x = 1 %}\n  a\n{%- set n.x = 2 -%}\n b", "  ab"),
            ("", "{% macro f(t) %}{% set n.x = t %}{% endmacro %}{{ f('a') }}{{ n.x }}", "a"),
        ] {
            let source = format!("{{% set n = namespace({arguments}) %}}{used}");
            assert_eq!(render(&source).expect(&source), expected, "{source}");
        }
        for (source, reason) in [
            ("{% set m = {} %}{% set m.x = 1 %}", "can only assign to namespaces, not map"),
            ("{% set m.x = 1 %}", "can only assign to namespaces, not undefined"),
            ("{{ namespace(3) }}", "expected one mapping, got number"),
            ("{% for k in namespace(a=1) %}{% endfor %}", "not iterable"),
            ("{{ namespace() | tojson }}", "cannot be written as JSON"),
        ] {
            let message = render(source).expect_err(source).to_string();
            assert!(message.contains(reason), "{source}: {message}");
        }
    }

    /// Every way that could follow the reference without end. Lists and mappings cannot be changed
    /// in a template, so that they cannot hold themselves.
    #[test]
    fn a_namespace_may_hold_itself() {
        let cycles = [
            "{% set n = namespace() %}{% set n.x = n %}",
            "{% set n = namespace() %}{% set n.x = [n] %}",
            "{% set n = namespace() %}{% set n.x = {'a': [n]} %}",
            "{% set n = namespace() %}{% set n.x, n.y = n, [n] %}",
            "{% set n = namespace() %}{% set n.x | default(n, true) %}{% endset %}",
            "{% set m = namespace() %}{% set n = namespace(x=m) %}{% set m.x = [n, n] %}",
            "{% set n = namespace() %}{% for i in [n, 1] %}{% set n.x = loop %}{% endfor %}",
        ];
        let mut written = 0;
        for cycle in cycles {
            for use_it in [
                "{{ n }}",
                "{{ n ~ '' }}",
                "{{ [n, n.x] }}",
                "{{ n.x ~ n.x }}",
                "{{ n | string }}",
                "{{ n | pprint }}",
                "{{ n.x | pprint }}",
                "{{ n | tojson }}",
                "{{ n.x | tojson }}",
                "{{ [n, n.x] | join(',') }}",
                "{{ '%s' % n }}",
                "{{ '%s' % n.x }}",
                "{{ '%s%s' % (n, n.x) }}",
                "{{ '{} {x}'.format(n, x=n.x) }}",
                "{{ n == n.x }}",
                "{{ n.x == n.x }}",
                "{{ [n] == [n.x] }}",
                "{{ n < n.x }}",
                "{{ [n.x, n] | sort }}",
                "{{ [n.x, n] | unique | list }}",
                "{{ {n: 1, n.x: 2} }}",
                "{{ {n.x: 1}[n.x] }}",
                "{{ n in n.x }}",
                "{{ n in [n.x] }}",
                "{{ [n, n.x] | min }}",
                "{{ n | length }}",
                "{{ n | items | list }}",
                "{{ n | list }}",
                "{{ n.items() }}",
                "{{ n | urlencode }}",
                "{{ n | upper }}",
                "{{ n | replace('a', n.x) }}",
                "{{ n | safe }}{{ n | escape }}",
                "{{ [n, n.x] | groupby('x') }}",
                "{{ [n, n.x] | map(attribute='x') | list }}",
                "{{ n is sameas n.x }}{{ n is eq n.x }}",
                "{{ debug(n) }}",
                "{{ dict(n) }}",
                "{{ [n, n.x] | sum }}",
                "{{ raise_exception(n) }}",
                "{{ n.append(n) }}",
                "{{ [n.x] | index(n) }}",
                "{{ [n.x].index(n) }}",
                "{{ [n.x].count(n) }}",
                "{% for i in [n, n.x] %}{{ loop.changed(i) }}{{ loop }}{% endfor %}",
                "{% macro f(a) %}{{ a }}{{ caller() }}{% endmacro %}{% call f(n) %}{{ n.x }}\
                 {% endcall %}",
                "{% if n %}{% set n.z = n.x ~ n %}{{ n.z }}{% endif %}",
                "{% set n.z = [n.x] %}{{ n.z }}",
            ] {
                // As the threads of the pool that renders rows.
                let source = format!("{cycle}{use_it}");
                let work = || render(&source);
                let rendered = std::thread::scope(|scope| {
                    let thread = std::thread::Builder::new().stack_size(2 << 20);
                    thread.spawn_scoped(scope, work).unwrap().join().unwrap()
                });
                match rendered {
                    Ok(text) => {
                        assert!(text.len() < 2000, "{source}: {text}");
                        written += usize::from(text.contains("<Namespace {"));
                    }
                    Err(TemplateError::Refused(reason)) => assert!(!reason.is_empty()),
                    Err(error) => panic!("{source}: {error}"),
                }
            }
        }
        assert!(written > 50, "{written}");
        let text = render(&format!("{}{{{{ n }}}}{{{{ [n] | join }}}}", cycles[0])).unwrap();
        assert_eq!(text, "<Namespace {'x': <Namespace {...}>}>".repeat(2));
        let list = render("{% set x = [1] %}{{ x.append(x) }}").unwrap_err().to_string();
        assert!(list.contains("append"), "{list}");
    }

    #[test]
    fn namespaces_that_hold_themselves_are_freed() {
        let mut environment = Environment::new();
        add_namespaces(&mut environment);
        let held = Arc::new(());
        #[derive(Debug)]
        struct Held(#[expect(dead_code)] Arc<()>);
        impl Object for Held {}
        let source = "{% set n = namespace(h=held) %}{% set n.x = [n] %}{% set n.l = \
                      namespace(n=n, h=held) %}{{ n.l.n.x[0].h is defined }}";
        let context = minijinja::context! { held => Value::from_object(Held(held.clone())) };
        assert_eq!(environment.render_str(&rewrite_assignments(source), &context).unwrap(), "True");
        drop(context);
        assert_eq!(Arc::strong_count(&held), 1);
    }

    #[test]
    fn a_long_chain_of_namespaces_is_freed() {
        let chain = "{% set n = namespace() %}{% set n.x = n %}{% for i in range(60000) %}\
                     {% set n.x = namespace(x=n.x) %}{% endfor %}{{ n.x.x is defined }}";
        assert_eq!(render(chain).unwrap(), "True");
    }
}
