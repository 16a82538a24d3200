//! What does `config.json` say? Values read key by key, with errors that name the key.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::file;

/// A parsed `config.json`, or an object in it.
pub(crate) struct ConfigJson {
    path: PathBuf,
    values: Map<String, Value>,
    /// The keys that were asked for.
    asked: Rc<RefCell<BTreeSet<String>>>,
}

impl ConfigJson {
    /// Reads a file with a JSON object from a checkpoint's folder.
    pub(crate) fn read(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(name);
        let text = file::read(&path)?;
        let wrong = |found: String| Error::Format {
            path: path.clone(),
            at: "the file".to_owned(),
            expected: "a JSON object".to_owned(),
            found,
        };
        match serde_json::from_slice(&text) {
            Ok(Value::Object(values)) => Ok(Self::of_values(&path, values)),
            Ok(_) => Err(wrong("another JSON value".to_owned())),
            Err(reason) => Err(wrong(reason.to_string())),
        }
    }

    /// What a file of another format says in the words of `config.json`.
    pub(super) fn of_values(path: &Path, values: Map<String, Value>) -> Self {
        Self { path: path.to_owned(), values, asked: Rc::default() }
    }

    /// The same with what the family assumes of keys that are left out, of which `null` may mean something else.
    pub(crate) fn assuming<const N: usize>(&self, defaults: [(&str, Value); N]) -> Self {
        let mut values = self.values.clone();
        for (key, value) in defaults {
            values.entry(key).or_insert(value);
        }
        Self { path: self.path.clone(), values, asked: Rc::clone(&self.asked) }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The value of `key`, if present; `null` counts as absent.
    fn value(&self, key: &str) -> Option<&Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The value of `key` converted by `read`, if present.
    fn read_as<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let wrong = |value: &Value| self.wrong(key, expected, value.to_string());
        self.value(key).map(|value| read(value).ok_or_else(|| wrong(value))).transpose()
    }

    fn required<T>(&self, key: &str, expected: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| self.wrong(key, expected, "nothing".to_owned()))
    }

    /// An error about `key`.
    pub(crate) fn wrong(&self, key: &str, expected: &str, found: String) -> Error {
        Error::Format { path: self.path.clone(), at: format!("key `{key}`"), expected: expected.to_owned(), found }
    }

    pub(crate) fn opt_usize(&self, key: &str) -> Result<Option<usize>> {
        self.read_as(key, "a whole number", |value| usize::try_from(value.as_u64()?).ok())
    }

    pub(crate) fn usize(&self, key: &str) -> Result<usize> {
        self.required(key, "a whole number", self.opt_usize(key)?)
    }

    pub(crate) fn opt_f64(&self, key: &str) -> Result<Option<f64>> {
        self.read_as(key, "a number", Value::as_f64)
    }

    pub(crate) fn f64(&self, key: &str) -> Result<f64> {
        self.required(key, "a number", self.opt_f64(key)?)
    }

    pub(crate) fn bool_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.read_as(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    pub(crate) fn opt_str(&self, key: &str) -> Result<Option<&str>> {
        let wrong = |value: &Value| self.wrong(key, "a text", value.to_string());
        self.value(key).map(|value| value.as_str().ok_or_else(|| wrong(value))).transpose()
    }

    pub(crate) fn str(&self, key: &str) -> Result<&str> {
        self.required(key, "a text", self.opt_str(key)?)
    }

    pub(crate) fn opt_object(&self, key: &str) -> Result<Option<Self>> {
        let object = |value: &Value| {
            let (path, asked) = (self.path.clone(), Rc::clone(&self.asked));
            Some(Self { path, values: value.as_object()?.clone(), asked })
        };
        self.read_as(key, "an object", object)
    }

    /// Whether there is a value for `key`.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }

    /// The first of `keys` that is present, otherwise the first: a number may have had another name once.
    pub(crate) fn first<'a>(&self, keys: &[&'a str]) -> &'a str {
        let own = keys.iter().find(|key| self.has(key)).or(keys.first());
        own.copied().unwrap_or_default()
    }

    /// The keys that are present, and the keys that have been asked for since the last call.
    pub(crate) fn keys(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        (self.values.keys().cloned().collect(), self.asked.take())
    }

    /// The value of `key`, deserialised, if present.
    pub(crate) fn opt_parsed<T: serde::de::DeserializeOwned>(&self, key: &str, expected: &str) -> Result<Option<T>> {
        self.has(key).then(|| self.parsed(key, expected)).transpose()
    }

    /// The value of `key`, deserialised.
    pub(crate) fn parsed<T: serde::de::DeserializeOwned>(&self, key: &str, expected: &str) -> Result<T> {
        let value = self.required(key, expected, self.value(key))?;
        serde_json::from_value(value.clone()).map_err(|reason| self.wrong(key, expected, reason.to_string()))
    }

    /// [`ConfigJson::parsed`], or the default if the key is absent.
    pub(crate) fn parsed_or_default<T: serde::de::DeserializeOwned + Default>(
        &self,
        key: &str,
        expected: &str,
    ) -> Result<T> {
        if self.value(key).is_some() { self.parsed(key, expected) } else { Ok(T::default()) }
    }

    /// Returns an error if `key` is present with a value other than `only`, which headscope would silently compute
    /// wrongly.
    pub(crate) fn only(&self, key: &str, only: &Value) -> Result<()> {
        match self.value(key) {
            Some(value) if value != only => {
                Err(self.wrong(key, &format!("{only} (nothing else is supported)"), value.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// A token id or a list of them; empty if the key is absent.
    pub(crate) fn ids(&self, key: &str) -> Result<Vec<i64>> {
        let ids = |value: &Value| match value {
            Value::Array(ids) => ids.iter().map(Value::as_i64).collect(),
            id => Some(vec![id.as_i64()?]),
        };
        Ok(self.read_as(key, "a token id or a list of them", ids)?.unwrap_or_default())
    }
}
