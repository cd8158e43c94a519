//! Variables, parameters, registers and their initial values.

use super::{Kind, Parsed, Parser, Refusal};
use crate::ptx::tree::{Init, Linkage, Position, Prototype, Space, Variable};

/// What stands before the names of a declaration.
struct Head<'a> {
    space: Space,
    align: Option<u64>,
    vector: u8,
    ty: &'a str,
}

impl<'a> Parser<'_, 'a> {
    pub(super) fn space(&mut self, allowed: &[Space]) -> Parsed<Space> {
        let space = match self.kind() {
            Kind::Dot("reg") => Space::Reg,
            Kind::Dot("const") => Space::Const,
            Kind::Dot("global") => Space::Global,
            Kind::Dot("local") => Space::Local,
            Kind::Dot("param") => Space::Param,
            Kind::Dot("shared" | "shared::cta") => Space::Shared,
            Kind::Dot(name) => return Err(Refusal::new(self.at(), format!("unknown directive '.{name}'"))),
            _ => return Err(self.unexpected("a state space")),
        };
        if !allowed.contains(&space) {
            return Err(Refusal::new(self.at(), format!("{space:?} variables cannot be declared here")));
        }
        self.next += 1;
        Ok(space)
    }

    /// `.space .align 4 .v2 .f32 a, b[3], c = 1;`
    pub(super) fn variables(
        &mut self,
        linkage: Linkage,
        space: Space,
        mut declare: impl FnMut(Variable<'a>),
    ) -> Parsed<()> {
        let head = self.head(space)?;
        loop {
            let mut variable = self.declarator(&head, linkage)?;
            if self.take("=") {
                variable.init = Some(self.init()?);
            }
            declare(variable);
            if !self.take(",") {
                return self.expect(";");
            }
        }
    }

    fn head(&mut self, space: Space) -> Parsed<Head<'a>> {
        let mut head = Head { space, align: None, vector: 1, ty: "" };
        loop {
            let Kind::Dot(name) = self.kind() else { return Err(self.unexpected("a type")) };
            let at = self.at();
            self.next += 1;
            match name {
                "align" => head.align = Some(self.alignment()?),
                "v2" => head.vector = 2,
                "v4" => head.vector = 4,
                // What a pointer parameter points to; the pointer's own type came before.
                "managed" | "ptr" | "attribute" => {
                    return Err(Refusal::new(at, format!("'.{name}' is not supported here")));
                }
                "texref" | "samplerref" | "surfref" => {
                    return Err(Refusal::new(at, format!("'.{name}': textures and surfaces are not supported")));
                }
                _ => {
                    head.ty = name;
                    self.pointee()?;
                    return Ok(head);
                }
            }
        }
    }

    /// `.ptr .global .align 16` after the type of a parameter: advice to compilers.
    fn pointee(&mut self) -> Parsed<()> {
        if !self.take_dot("ptr") {
            return Ok(());
        }
        while let Kind::Dot(name) = self.kind() {
            self.next += 1;
            match name {
                "const" | "global" | "local" | "shared" => {}
                "align" => {
                    self.alignment()?;
                }
                _ => return Err(self.unexpected("a state space or '.align' after '.ptr'")),
            }
        }
        Ok(())
    }

    fn alignment(&mut self) -> Parsed<u64> {
        let at = self.at();
        let align = self.count("an alignment")?;
        if !align.is_power_of_two() || align > 1 << 16 {
            return Err(Refusal::new(at, "an alignment is a power of two, at most 65536"));
        }
        Ok(align)
    }

    fn declarator(&mut self, head: &Head<'a>, linkage: Linkage) -> Parsed<Variable<'a>> {
        let at = self.at();
        let name = self.name("a name")?;
        let mut variable = Variable {
            linkage,
            space: head.space,
            align: head.align,
            vector: head.vector,
            ty: head.ty,
            name,
            range: None,
            dimensions: Vec::new(),
            init: None,
            at,
        };
        if self.take("<") {
            variable.range = Some(self.count("how many")?);
            self.expect(">")?;
        }
        while self.take("[") {
            let size = if self.is("]") { None } else { Some(self.size()?) };
            variable.dimensions.push(size);
            self.expect("]")?;
        }
        Ok(variable)
    }

    /// `( .param .b32 a, .reg .f32 b )`, the parentheses included.
    pub(super) fn parameters(&mut self) -> Parsed<Vec<Variable<'a>>> {
        self.expect("(")?;
        if self.take(")") {
            return Ok(Vec::new());
        }
        let parameters = self.list(|p| {
            let space = p.space(&[Space::Param, Space::Reg])?;
            let head = p.head(space)?;
            p.declarator(&head, Linkage::Internal)
        })?;
        self.expect(")")?;
        Ok(parameters)
    }

    /// `.callprototype (returns) _ (params);` after its label.
    pub(super) fn prototype(&mut self, name: &'a str, at: Position) -> Parsed<Prototype<'a>> {
        if !self.take_dot("callprototype") {
            return Err(self.unexpected("'.callprototype'"));
        }
        let returns = if self.is("(") { self.parameters()? } else { Vec::new() };
        self.name("'_'")?;
        let params = if self.is("(") { self.parameters()? } else { Vec::new() };
        self.take_dot("noreturn");
        self.expect(";")?;
        Ok(Prototype { name, returns, params, at })
    }

    fn init(&mut self) -> Parsed<Init<'a>> {
        if self.take("{") {
            if self.take("}") {
                return Ok(Init::List(Vec::new()));
            }
            let items = self.nested(|p| p.list(|p| p.init()))?;
            self.expect("}")?;
            return Ok(Init::List(items));
        }
        let at = self.at();
        match (self.kind(), self.ahead(1).kind) {
            (Kind::Integer(mask, _), Kind::Mark("(")) => {
                self.next += 2;
                let init = self.address(at, Some(mask))?;
                self.expect(")")?;
                Ok(init)
            }
            (Kind::Name(name), _) if name != "WARP_SZ" => self.address(at, None),
            _ => self.constant().map(Init::Constant),
        }
    }

    /// `name`, `name + 4`, `name[2]` is not among them; `generic(name)` is.
    fn address(&mut self, at: Position, mask: Option<u64>) -> Parsed<Init<'a>> {
        let mut name = self.name("a variable or function")?;
        let generic = name == "generic" && self.take("(");
        if generic {
            name = self.name("a variable")?;
        }
        let mut offset = self.offset()?;
        if generic {
            self.expect(")")?;
            offset = offset.wrapping_add(self.offset()?);
        }
        Ok(Init::Address { name, offset, generic, mask, at })
    }
}
