

# --- The program's side ---


def error_of(code: str, message: str) -> str:
    message = message if len(message) <= MESSAGE else message[:MESSAGE] + "…"
    return json.dumps({"error": {"code": code, "message": message}})


def serve(seconds: float) -> None:
    kinds = {"chat": ChatTemplates().answer, "output": Outputs().answer}
    replies = open(0, "w", encoding="ascii", closefd=False)  # a socket, of which nothing that prints knows
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # SIGPROF ends a process that does not expect it
        number, _, question = line.partition(b" ")
        try:
            ask = json.loads(question)
            text = json.dumps(kinds[ask["kind"]](ask))
        except Refused as refused:
            code, message = refused.args
            text = error_of(code, message)
        except Exception as error:  # too deep, too large, too long a number, or of a kind that was not thought of
            text = error_of("invalid_request", f"{type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(number.decode("ascii"), text, file=replies, flush=True)


def main() -> None:
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    # A conda or module python3 may come before the system's, which has the packages of the distribution.
    system = "/usr/bin/python3"
    command = getattr(sys, "orig_argv", [])
    if import_jinja() is None and "PTRT_PYTHON" not in os.environ and command \
            and os.path.realpath(sys.executable) != os.path.realpath(system) and os.access(system, os.X_OK):
        os.execv(system, [system, *command[1:]])
    os.closerange(3, 4096)  # of the program: they would keep its connections open after it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of the input is the end
    serve(seconds)


main()
