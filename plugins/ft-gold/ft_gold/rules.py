from ft_host import hookimpl

RULES = []
@hookimpl
def ft_rules():
    return RULES
