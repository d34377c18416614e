

# --- Chat templates, as transformers renders them (utils/chat_template_utils.py of 5.24) ---


def make_environment(date: str) -> object:
    import datetime

    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %} … {% endgeneration %} marks an assistant's text for training; here it is its content."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    class Undefined(jinja2.Undefined):
        """The text of a token that the model file lacks is an error, not an empty text."""

        def __str__(self) -> str:
            if self._undefined_name in ("bos_token", "eos_token"):
                raise jinja2.TemplateError(f"it writes {self._undefined_name}, which the model file does not have: "
                                           "chat_template_kwargs may give it")
            return ""

    class Dict:
        def __call__(self, *args, **kwargs):
            return dict(*args, **kwargs)

        def fromkeys(self, *args):
            return dict.fromkeys(*args)

    class Namespace(jinja2.utils.Namespace):
        def __init__(*args, **kwargs):  # so that a template may name an attribute `self`
            self, args = args[0], args[1:]
            attributes = dict(*args, **kwargs)
            for name in attributes:
                Namespace.check(name)
            jinja2.utils.Namespace.__init__(self, attributes)

        def __setitem__(self, name, value):
            Namespace.check(name)
            jinja2.utils.Namespace.__setitem__(self, name, value)

        @staticmethod
        def check(name):
            if isinstance(name, str) and name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[Generation, jinja2.ext.loopcontrols], undefined=Undefined)
    for table, name in ((environment.filters, "random"), (environment.globals, "lipsum")):
        del table[name]  # the prompts of two runs are the same
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = datetime.datetime.fromisoformat(date).strftime
    environment.globals["dict"] = Dict()
    environment.globals["namespace"] = Namespace
    return environment


class ChatTemplates:
    def __init__(self) -> None:
        self.key, self.compiled = None, None  # of the last template

    def compile(self, text: str, date: str) -> object:
        if self.key != (text, date):
            self.compiled = make_environment(date).from_string(text)
            self.key = (text, date)
        return self.compiled

    def answer(self, ask: dict) -> dict:
        if import_jinja() is None:
            raise Refused("chat_template_unavailable",
                          f"chat templates need Jinja, which {sys.executable} does not have: install python3-jinja2 "
                          "(Debian) or jinja2 (PyPI), or let PTRT_PYTHON name another interpreter")
        import jinja2
        body = ask["line"]["body"] if ask["openai"] else ask["line"]
        try:
            return {"text": self.render(ask, {key: value for key, value in body.items() if value is not None})}
        except Refused:
            raise
        except jinja2.TemplateError as error:
            where = f" in line {error.lineno}" if isinstance(error, jinja2.TemplateSyntaxError) else ""
            raise Refused("chat_template_error", f"the chat template{where} says: {error.message}") from error
        except MemoryError:
            raise Refused("chat_template_error", "the chat template needs too much memory") from None
        except Exception as error:  # whatever the template's expressions raise
            raise Refused("chat_template_error",
                          f"the chat template fails: {type(error).__name__}: {error}") from error

    def render(self, ask: dict, body: dict) -> str:
        chat = [prepared(message) for message in body["messages"]]
        continued = body.get("continue_final_message", False)
        final = mark_final(chat, ask["template"]) if continued else ""
        names = {name: ask[name] for name in ("bos_token", "eos_token") if name in ask}
        template = self.compile(ask["template"], ask["date"])
        names.update(messages=chat, tools=body.get("tools"), documents=body.get("documents"),
                     add_generation_prompt=body.get("add_generation_prompt", not continued))
        further = body.get("chat_template_kwargs", {})
        for name in further:
            if name in names or name in template.globals or name == "continue_final_message":
                raise Refused("invalid_request", f"'chat_template_kwargs' may not replace '{name}'")
        text = template.render({**names, **further})
        return cut_at_mark(text, final) if continued else text


def prepared(message: dict) -> dict:
    """A message as templates expect it: without nulls, its text in one piece, arguments of tools as objects."""
    message = {key: value for key, value in message.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "\n".join(part["text"] for part in content)
    for call in message.get("tool_calls", []):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"])
            except ValueError:
                continue
            if isinstance(arguments, dict):
                function["arguments"] = arguments
    reasoning = next((message[key] for key in REASONING if key in message), None)
    if reasoning is not None:
        message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
    return message


def mark_final(chat: list[dict], template: str) -> str:
    final = chat[-1].get("content")
    if final is None:
        raise Refused("invalid_request", "'continue_final_message' needs a last message with 'content'")
    if "content" not in template:
        raise Refused("chat_template_error", "'continue_final_message': the chat template does not read 'content'")
    chat[-1]["content"] = final + CONTINUED
    return final


def cut_at_mark(text: str, final: str) -> str:
    mark = CONTINUED.strip()
    if final.strip() not in text or mark not in text:
        raise Refused("chat_template_error",
                      "'continue_final_message': the last message is not in the text that the chat template gives")
    at = text.rindex(mark)
    if text[at:at + len(CONTINUED)] == CONTINUED:
        return text[:at]
    return text[:at].rstrip()  # the template has trimmed the message
