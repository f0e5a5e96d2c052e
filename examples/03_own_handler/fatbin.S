/* Puts the fatbin into the program. */
    .section .rodata
    .balign 16
    .global own_fatbin
    .global own_fatbin_end
own_fatbin:
    .incbin "handlers.fatbin"
own_fatbin_end:
    .section .note.GNU-stack,"",%progbits
