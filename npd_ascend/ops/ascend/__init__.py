"""``npd doctor CONFIG --compile``: MindSpore's own compiler for Ascend, without a device.

In its dry run MindSpore's Ascend backend compiles graphs, runs its fusion passes, chooses a kernel for every operator
and plans device memory, and launches nothing. Where CANN is installed it runs with that; elsewhere with stand-ins:
libraries that have CANN's symbols and no content. What it finds are crashes, operators without a kernel, collectives
and memory; never wrong numbers.

``cann`` finds the libraries or has ``standins`` make them; ``graphs`` says what a configuration compiles; ``depths``
how many layers of it this host can hold; ``run`` starts ``child``, which compiles in a process of the MindSpore
environment; ``output`` reads what the compiler said; ``verdict`` judges it; ``check`` puts them in order.
"""
