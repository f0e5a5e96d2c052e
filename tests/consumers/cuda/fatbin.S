    .section .rodata
    .balign 16
    .global own_fatbin
    .global own_fatbin_end
own_fatbin:
    .incbin "own.fatbin"
own_fatbin_end:
    .section .note.GNU-stack,"",%progbits
