"""`sfumato completion SHELL`: the script that completes commands and options."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

# Each hands the words so far to the program itself, which answers under _SFUMATO_COMPLETE.
_SCRIPTS = {
    "bash": r"""_sfumato_complete() {
    local IFS=$'\n'
    COMPREPLY=($(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD="$COMP_CWORD" \
        _SFUMATO_COMPLETE=complete_bash sfumato 2>/dev/null))
}
complete -o default -F _sfumato_complete sfumato
""",
    "zsh": r"""#compdef sfumato
_sfumato() {
    eval "$(_TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" \
        _SFUMATO_COMPLETE=complete_zsh sfumato 2>/dev/null)"
}
compdef _sfumato sfumato
""",
    "fish": r"""function __sfumato_complete
    set -lx _SFUMATO_COMPLETE complete_fish
    set -lx _TYPER_COMPLETE_FISH_ACTION get-args
    set -lx _TYPER_COMPLETE_ARGS (commandline -cp)
    sfumato 2>/dev/null
end
complete --command sfumato --no-files --arguments '(__sfumato_complete)'
""",
}
Shell = Literal["bash", "zsh", "fish"]


def completion(
    shell: Annotated[Shell, typer.Argument(help="The shell to write the script for.")],
) -> None:
    """Print a shell's completion script.

    Use it as `eval "$(sfumato completion bash)"`; `sfumato --install-completion` puts one into
    your shell's own files instead.
    """
    print(_SCRIPTS[shell], end="")
