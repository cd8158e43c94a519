//! Module scope: directives, variables, functions.

use super::{Kind, Module, Parsed, Parser, Refusal};
use crate::ptx::tree::{Directive, Function, Item, Linkage, Space};

impl<'a> Parser<'_, 'a> {
    pub(super) fn module(mut self) -> Parsed<Module<'a>> {
        let mut module = Module { address_size: 64, ..Module::default() };
        self.header(&mut module)?;
        while self.kind() != Kind::End {
            self.item(&mut module)?;
        }
        Ok(module)
    }

    fn header(&mut self, module: &mut Module<'a>) -> Parsed<()> {
        if !self.take_dot("version") {
            return Err(self.unexpected("'.version', with which every PTX text begins"));
        }
        module.version = self.version()?;
        if !self.take_dot("target") {
            return Err(self.unexpected("'.target' after '.version'"));
        }
        module.targets = self.list(|p| p.name("a target such as sm_80"))?;
        Ok(())
    }

    /// `8.2` reads as a fraction; its two numbers are in its shortest decimal form.
    fn version(&mut self) -> Parsed<(u32, u32)> {
        let Kind::Double(value) = self.kind() else { return Err(self.unexpected("a version such as 8.2")) };
        let text = format!("{value:?}");
        let parts = text.split_once('.').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        let version = parts.ok_or_else(|| self.unexpected("a version such as 8.2"))?;
        self.next += 1;
        Ok(version)
    }

    fn item(&mut self, module: &mut Module<'a>) -> Parsed<()> {
        if let (Kind::Name(_), Kind::Mark(":")) = (self.kind(), self.ahead(1).kind) {
            let at = self.at();
            let name = self.name("a label")?;
            self.next += 1;
            let prototype = self.prototype(name, at)?;
            module.items.push(Item::Prototype(prototype));
            return Ok(());
        }
        let Kind::Dot(name) = self.kind() else { return Err(self.unexpected("a directive or a declaration")) };
        match name {
            "address_size" => {
                self.next += 1;
                module.address_size = self.count32("an address size")?;
                if !matches!(module.address_size, 32 | 64) {
                    return Err(Refusal::new(self.at(), "an address has 32 or 64 bits"));
                }
            }
            "file" => {
                let file = self.file()?;
                module.files.push(file);
            }
            "pragma" => self.pragma()?,
            "section" => self.section()?,
            "loc" => {
                self.location()?;
            }
            "alias" => {
                let at = self.at();
                self.next += 1;
                let name = self.name("a function")?;
                self.expect(",")?;
                let target = self.name("a function")?;
                self.expect(";")?;
                module.items.push(Item::Alias { name, target, at });
            }
            _ => self.declaration(module)?,
        }
        Ok(())
    }

    fn declaration(&mut self, module: &mut Module<'a>) -> Parsed<()> {
        let mut linkage = Linkage::Internal;
        loop {
            linkage = match self.kind() {
                Kind::Dot("visible") => Linkage::Visible,
                Kind::Dot("extern") => Linkage::Extern,
                Kind::Dot("weak") => Linkage::Weak,
                Kind::Dot("common") => Linkage::Common,
                _ => break,
            };
            self.next += 1;
        }
        match self.kind() {
            Kind::Dot(kind @ ("entry" | "func")) => {
                self.next += 1;
                let function = self.function(linkage, kind == "entry")?;
                module.items.push(Item::Function(function));
            }
            Kind::Dot(_) => {
                let space = self.space(&[Space::Const, Space::Global, Space::Shared, Space::Local, Space::Param])?;
                self.variables(linkage, space, |variable| module.items.push(Item::Variable(variable)))?;
            }
            _ => return Err(self.unexpected("a declaration")),
        }
        Ok(())
    }

    fn function(&mut self, linkage: Linkage, entry: bool) -> Parsed<Function<'a>> {
        let mut directives = Vec::new();
        self.directives(&mut directives)?;
        let returns = if !entry && self.is("(") { self.parameters()? } else { Vec::new() };
        let at = self.at();
        let name = self.name("the name of a function")?;
        let params = if self.is("(") { self.parameters()? } else { Vec::new() };
        self.directives(&mut directives)?;
        let body = if self.take(";") {
            None
        } else {
            self.expect("{")?;
            Some(self.block()?)
        };
        Ok(Function { linkage, entry, name, returns, params, directives, body, at })
    }

    fn directives(&mut self, directives: &mut Vec<Directive<'a>>) -> Parsed<()> {
        while let Kind::Dot(name) = self.kind() {
            let at = self.at();
            match name {
                "pragma" => self.pragma()?,
                "loc" => {
                    self.location()?;
                }
                "noreturn" | "explicitcluster" => {
                    self.next += 1;
                    directives.push(Directive { name, values: Vec::new(), at });
                }
                "maxntid" | "reqntid" | "minnctapersm" | "maxnctapersm" | "maxnreg" => {
                    self.next += 1;
                    let values = self.list(|p| p.count("a number"))?;
                    directives.push(Directive { name, values, at });
                }
                _ => return Err(Refusal::new(at, format!("unknown directive '.{name}'"))),
            }
        }
        Ok(())
    }

    /// `.file 1 "path"` with an optional time and size.
    fn file(&mut self) -> Parsed<(u32, &'a str)> {
        self.next += 1;
        let index = self.count32("the index of a file")?;
        let Kind::Text(path) = self.kind() else { return Err(self.unexpected("a path in quotes")) };
        self.next += 1;
        while self.take(",") {
            self.count("a number")?;
        }
        Ok((index, path))
    }

    pub(super) fn pragma(&mut self) -> Parsed<()> {
        self.next += 1;
        self.list(|p| match p.advance().kind {
            Kind::Text(_) => Ok(()),
            _ => Err(p.unexpected("a text in quotes")),
        })?;
        self.expect(";")
    }

    /// Debug data, of no consequence to what a program does.
    fn section(&mut self) -> Parsed<()> {
        let at = self.at();
        self.next += 1;
        while !self.take("{") {
            if matches!(self.kind(), Kind::End | Kind::Mark(";" | "}")) {
                return Err(self.unexpected("'{' of a section"));
            }
            self.next += 1;
        }
        while !self.take("}") {
            if self.kind() == Kind::End {
                return Err(Refusal::new(at, "this section has no end"));
            }
            self.next += 1;
        }
        Ok(())
    }
}
