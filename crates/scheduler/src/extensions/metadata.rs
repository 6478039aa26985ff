//! The scheduler's metadata: a tree of dicts that clients read and write.

use std::hash::RandomState;

use indexmap::IndexMap;
use oxidask_wire::{Key, Map, Value};

use super::arguments::{hashable, python_type};
use super::errors::{key_error, type_error, value_error};
use super::waits::{Answer, NONE, check_names};
use crate::instruction::Failure;

/// `Scheduler.task_metadata`.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    root: Tree,
}

type Tree = IndexMap<Key, Node, RandomState>;

#[derive(Debug)]
enum Node {
    /// A dict, opened because a path led into it.
    Tree(Tree),
    /// Anything else, and dicts that were set whole.
    Leaf(Value),
}

impl Node {
    /// The dict at this node; whatever else was there is replaced by an empty one.
    ///
    /// Stock descends into lists, too, and then fails on their indices.
    fn open(&mut self) -> Result<&mut Tree, Failure> {
        if let Self::Leaf(value) = self {
            let map = std::mem::take(value).into_map().unwrap_or_default();
            *self = Self::Tree(open_map(map)?);
        }
        match self {
            Self::Tree(tree) => Ok(tree),
            Self::Leaf(_) => Err(type_error("a value is not a dict")),
        }
    }

    fn value(&self) -> Value {
        match self {
            Self::Leaf(value) => value.clone(),
            Self::Tree(tree) => tree
                .iter()
                .map(|(key, node)| (key, node.value()))
                .collect::<Map>()
                .into(),
        }
    }
}

fn open_map(map: Map) -> Result<Tree, Failure> {
    map.into_iter()
        .map(|(key, value)| Ok((hashable(&key)?, Node::Leaf(value))))
        .collect()
}

impl Metadata {
    /// `set_metadata`: dicts on the way are made as needed.
    pub(super) fn set(&mut self, mut path: Vec<Key>, value: &Value) -> Answer {
        let Some(last) = path.pop() else {
            return Err(value_error("set_metadata needs at least one key"));
        };
        let mut tree = &mut self.root;
        for key in path {
            check_names(tree.len(), "metadata entries")?;
            tree = tree
                .entry(key)
                .or_insert_with(|| Node::Tree(Tree::default()))
                .open()?;
        }
        check_names(tree.len(), "metadata entries")?;
        tree.insert(last, Node::Leaf(value.detached()));
        NONE
    }

    /// The task of this name is forgotten.
    pub(super) fn forget(&mut self, key: &Key) {
        self.root.shift_remove(key);
    }

    /// `get_metadata`: the value at the end of the path, or else `default`.
    pub(super) fn get(&self, path: &[Key], default: Option<Value>) -> Answer {
        let Some((first, rest)) = path.split_first() else {
            let all: Map = self
                .root
                .iter()
                .map(|(key, node)| (key, node.value()))
                .collect();
            return Ok(Some(all.into()));
        };
        let missing = |key: &Key| match &default {
            Some(default) => Ok(Some(default.clone())),
            None => Err(key_error(key)),
        };
        let Some(mut node) = self.root.get(first) else {
            return missing(first);
        };
        for (at, key) in rest.iter().enumerate() {
            match node {
                Node::Tree(tree) => match tree.get(key) {
                    Some(next) => node = next,
                    None => return missing(key),
                },
                Node::Leaf(value) => {
                    return match descend(value, &rest[at..]) {
                        Ok(value) => Ok(Some(value.clone())),
                        Err(Miss::Key(key)) => missing(key),
                        Err(Miss::Type(found)) => Err(type_error(&format!(
                            "'{found}' object is not subscriptable"
                        ))),
                    };
                }
            }
        }
        Ok(Some(node.value()))
    }
}

enum Miss<'a> {
    Key(&'a Key),
    Type(&'static str),
}

fn descend<'a>(mut value: &'a Value, path: &'a [Key]) -> Result<&'a Value, Miss<'a>> {
    for key in path {
        let Value::Map(map) = value else {
            return Err(Miss::Type(python_type(value)));
        };
        let found = map
            .iter()
            .rev()
            .find(|(k, _)| Key::from_value(k).is_ok_and(|k| k == *key));
        value = &found.ok_or(Miss::Key(key))?.1;
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use oxidask_wire::map;

    use super::*;

    fn path(keys: &[&str]) -> Vec<Key> {
        keys.iter().map(|key| Key::from(*key)).collect()
    }

    #[test]
    fn paths_make_dicts_and_read_into_values() {
        let mut metadata = Metadata::default();
        metadata.set(path(&["a", "b"]), &Value::from(1)).unwrap();
        metadata
            .set(path(&["a", "c"]), &map! {"d" => 2}.into())
            .unwrap();
        assert_eq!(
            metadata.get(&path(&["a", "b"]), None),
            Ok(Some(Value::from(1)))
        );
        assert_eq!(
            metadata.get(&path(&["a", "c", "d"]), None),
            Ok(Some(Value::from(2)))
        );
        assert_eq!(
            metadata.get(&path(&["a", "x"]), Some(Value::Nil)),
            Ok(Some(Value::Nil))
        );
        let text = metadata
            .get(&path(&["a", "c", "x"]), None)
            .unwrap_err()
            .text;
        assert_eq!(text, "KeyError('x')");
        let text = metadata
            .get(&path(&["a", "b", "x"]), None)
            .unwrap_err()
            .text;
        assert_eq!(text, "TypeError(\"'int' object is not subscriptable\")");

        // Setting below a dict that was set whole keeps its other entries.
        metadata
            .set(path(&["a", "c", "e"]), &Value::from(3))
            .unwrap();
        let all = metadata.get(&path(&["a"]), None).unwrap().unwrap();
        let Value::Map(all) = all else {
            panic!("{all:?}")
        };
        assert_eq!(all.len(), 2);
        assert_eq!(
            metadata.get(&path(&["a", "c", "d"]), None),
            Ok(Some(Value::from(2)))
        );

        // Anything but a dict on the way is replaced.
        metadata
            .set(path(&["a", "b", "z"]), &Value::from(4))
            .unwrap();
        assert_eq!(
            metadata.get(&path(&["a", "b", "z"]), None),
            Ok(Some(Value::from(4)))
        );
    }
}
